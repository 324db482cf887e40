"""A release that fails its starts gives way to the one before, at boot.

`releases/<id>/failed_starts` holds a number. The service counts it up before a start and removes it
after a good one, so that a hang, a crash and a power cut count as failures. At the limit `current`
is switched to the newest release before it that is below the limit.

The service does this in sh, with sed, grep, readlink and mv of coreutils. The scripts contain no
single quote, backslash or percent sign, which systemd would read.
"""

import shlex

from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.slots.files import BoardFiles
from boardfit.edge.slots.layout import CURRENT, RELEASES, STATE, release_folder

FAILED_STARTS = "failed_starts"
#: Starts that may fail before a release gives way.
MAX_FAILED = 3
_MAX_BYTES = 16


def count_script(root: str) -> str:
    """What runs before a start: count it, and give way where too many have failed."""
    return _fill("count_start.sh", root)


def reset_script(root: str) -> str:
    """What runs after a good start."""
    return _fill("reset_starts.sh", root)


def _fill(name: str, root: str) -> str:
    return read_text_beside(
        __file__, name, root=shlex.quote(root), current=CURRENT, releases=RELEASES, state=STATE,
        file=FAILED_STARTS, most=MAX_FAILED,
    )  # fmt: skip


def failed_starts(files: BoardFiles, release_id: str) -> int:
    """How many starts of a release have failed since the last good one."""
    data = files.read(f"{release_folder(release_id)}/{FAILED_STARTS}", _MAX_BYTES) or b""
    text = data.decode("ascii", "replace").strip()
    return int(text) if text.isascii() and text.isdigit() else 0


def forgive_starts(files: BoardFiles, release_id: str) -> None:
    """Begin to count anew: a person has chosen this release."""
    folder = release_folder(release_id)
    if FAILED_STARTS in files.entries(folder):
        files.remove([f"{folder}/{FAILED_STARTS}"])
        files.sync([folder])
