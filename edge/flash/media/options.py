"""Check what only disk images and cards are asked for: an output, an owner, a first user."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.errors import UsageError
from boardfit.edge.flash.media.first_boot import BootFiles, check_user, hash_password
from boardfit.edge.terminal.options import add_options, pass_value
from boardfit.edge.units import printable

CARD_ONLY = ("--image", "--yes-erase")
IMAGE_ONLY = ("--output", "--in-place", "--overwrite")
MAX_PASSWORD_BYTES = 4096
_OWNER = re.compile(r"(\d{1,9}):(\d{1,9})")


@dataclass(frozen=True)
class MediaOptions:
    """As typed. `base` is the image that a card is made from."""

    output: Path | None = None
    in_place: bool = False
    overwrite: bool = False
    owner: str | None = None
    first_boot: bool = False
    user: str | None = None
    password_file: Path | None = None
    enable_ssh: bool = False
    base: Path | None = None
    yes_erase: str | None = None

    def list_given(self) -> list[str]:
        """The options that were given, as they are written."""
        names = {"base": "--image"}
        return [
            names.get(f.name, "--" + f.name.replace("_", "-"))
            for f in fields(self)
            if getattr(self, f.name)
        ]

    def check(self, scheme: str) -> None:
        """Raise UsageError for options that mean nothing to this kind of target, and for a card
        without an image to write.
        """
        wrong = {"image": CARD_ONLY, "card": IMAGE_ONLY}.get(scheme, tuple(self.list_given()))
        if given := [name for name in self.list_given() if name in wrong]:
            raise UsageError(f"{given[0]} is not for {scheme}{'' if ' ' in scheme else ':'}")
        if scheme == "card" and self.base is None:
            raise UsageError(
                "a card is written whole, so --image is required",
                next_step="--image raspios.img.xz; for a mounted card use dir:/media/…",
            )

    def owner_ids(self) -> tuple[int, int] | None:
        """uid and gid; None when not given. Raises UsageError for other text."""
        if self.owner is None:
            return None
        if not (match := _OWNER.fullmatch(self.owner)):
            raise UsageError(
                f"--owner takes UID:GID, got {printable(self.owner)!r}",
                next_step="for example --owner 1000:1000",
            )
        return int(match[1]), int(match[2])

    def boot_files(self) -> BootFiles:
        """Asks for the password on a terminal when no file has it."""
        if self.user is None:
            if self.password_file is not None:
                raise UsageError("--password-file needs --user")
            return BootFiles(enable_ssh=self.enable_ssh)
        check_user(self.user)
        if self.password_file is not None:
            data = OpenedFile.open(self.password_file).read(MAX_PASSWORD_BYTES)
            password = data.decode("utf-8", "surrogateescape").removesuffix("\n")
        elif sys.stdin.isatty():
            password = str(
                click.prompt(
                    f"Password of {self.user}", hide_input=True, confirmation_prompt=True, err=True
                )
            )
        else:
            raise UsageError(
                "--user needs a password, and there is no terminal to ask",
                next_step="--password-file FILE, whose first line it is",
            )
        return BootFiles(self.user, hash_password(password), self.enable_ssh)


_OPTIONS = (
    click.option(
        "-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
        help="Path of the new image (image: targets only). [default: beside the image, "
             "NAME-boardfit.img]",
    ),
    click.option("--in-place", is_flag=True, help="Change the image itself (image: targets only)."),
    click.option(
        "--overwrite", is_flag=True, help="Replace an existing --output (image: targets only)."
    ),
    click.option(
        "--owner", metavar="UID:GID",
        help="User who owns the releases (image:, card:). [default: the image's user 1000, else "
             "root]",
    ),
    click.option(
        "--first-boot", is_flag=True,
        help="Install the bundle's engine when the board starts (image:, card:; systemd).",
    ),
    click.option(
        "--user", metavar="NAME", help="Create a first user on Raspberry Pi OS (image:, card:)."
    ),
    click.option(
        "--password-file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="File with the user's password (image:, card:). [default: ask]",
    ),
    click.option(
        "--enable-ssh", is_flag=True,
        help="Start the ssh server on Raspberry Pi OS (image:, card:).",
    ),
    click.option(
        "--image", "base", type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="Image to write to the card, with the bundle in it (card: targets only).",
    ),
    click.option(
        "--yes-erase", metavar="SIZE",
        help="Erase the card without a question if it has this size (see --list-cards).",
    ),
)  # fmt: skip


def _list_cards(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from boardfit.edge.flash.media.cards import list_cards  # only then needed

        list_cards()
        context.exit()


_LIST_CARDS = click.option(
    "--list-cards", is_flag=True, is_eager=True, expose_value=False, callback=_list_cards,
    help="List the cards and USB sticks that card: may erase, and exit.",
)  # fmt: skip


def media_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as the one argument `media`."""
    return add_options(_LIST_CARDS)(pass_value("media", MediaOptions, *_OPTIONS)(command))
