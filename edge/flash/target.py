"""Parse the text that names a board and a folder on it.

dir:/media/card                       ssh://user@host:22/opt/boardfit
adb://SERIAL/data/local/tmp/boardfit  adb://  (the one device that is connected)
image:raspios.img.xz#2                card:/dev/sdb
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from boardfit.edge.errors import UsageError
from boardfit.edge.probe.remote import Target, parse_target
from boardfit.edge.units import did_you_mean, printable

SCHEMES = ("dir", "ssh", "adb", "image", "card")
SHAPES = (
    "dir:/path, ssh://user@host[:port]/path, adb://serial/path, image:file.img[#partition] or "
    "card:/dev/sdX"
)
#: They hold a whole system: `boardfit.edge.flash.media` makes it as a whole, and
#: `boardfit.edge.flash.board` only looks inside.
MEDIA = ("image", "card")
#: Relative to where ssh logs in.
SSH_FOLDER = "boardfit"
#: The only place on a phone where its shell user may keep programs and run them.
ADB_FOLDER = "/data/local/tmp/boardfit"


@dataclass(frozen=True)
class FlashTarget:
    """`folder` is the file or device for image and card, whose `partition` may be named. `board` is
    where it is for ssh and adb (None: the only device).
    """

    scheme: str
    folder: str
    board: Target | None = None
    partition: int | None = None

    def __str__(self) -> str:
        if self.scheme == "dir" or self.scheme in MEDIA:
            number = "" if self.partition is None else f"#{self.partition}"
            return f"{self.scheme}:{self.folder}{number}"
        path = self.folder if self.folder.startswith("/") else f"/~/{self.folder}"
        return f"{self.board or 'adb://'}{path}"


def parse_flash_target(text: str) -> FlashTarget:
    """Take a target apart. `ssh://host/~/x` is relative to the login folder; %20 and the like are
    decoded in ssh and adb targets. Raises UsageError that shows the shapes.
    """
    if not text.isprintable() or not text:
        raise UsageError(f"not a target: {printable(text)!r}; expected {SHAPES}")
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        if text.startswith(("/", "./", "../", "~")):
            raise UsageError(f"not a target: {printable(text)!r}", next_step=f"write dir:{text}")
        raise UsageError(
            f"not a target: {printable(text)!r}; expected {SHAPES}.{did_you_mean(scheme, SCHEMES)}"
        )
    if scheme == "dir":
        if not rest:
            raise UsageError("dir: needs a path", next_step="for example dir:/media/card/boardfit")
        return FlashTarget("dir", str(Path(rest).expanduser()))
    if scheme in MEDIA:
        path, mark, number = rest.rpartition("#")
        if not mark or not re.fullmatch(r"[0-9]{1,3}", number):
            path, number = rest, ""
        if not path:
            raise UsageError(
                f"{scheme}: needs a path", next_step="image:raspios.img.xz or card:/dev/sdb"
            )
        file = str(Path(path).expanduser())
        return FlashTarget(scheme, file, partition=int(number) if number else None)
    if not rest.startswith("//"):
        raise UsageError(f"not a target: {printable(text)!r}; expected {SHAPES}")
    place, slash, path = rest[2:].partition("/")
    folder = unquote(slash + path).rstrip("/")
    if not folder.isprintable():
        raise UsageError(f"{printable(text)}: the path has control characters in it")
    if folder == "" and path:
        raise UsageError(f"{printable(text)}: / itself is not a place for releases")
    if scheme == "adb":
        if folder and not folder.startswith("/"):
            folder = f"/{folder}"
        return FlashTarget(
            "adb", folder or ADB_FOLDER, parse_target(f"adb://{place}") if place else None
        )
    if folder.startswith("/~/"):
        folder = folder.removeprefix("/~/") or SSH_FOLDER
    return FlashTarget("ssh", folder or SSH_FOLDER, parse_target(f"ssh://{place}"))
