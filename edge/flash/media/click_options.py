"""Options of `edge flash` that only disk images and cards have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from boardfit.edge.flash.media.options import MediaOptions
from boardfit.edge.terminal.options import add_options, pass_value

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
        from boardfit.edge.flash.media.card import list_cards  # brings what makes a card

        list_cards()
        context.exit()


_LIST_CARDS = click.option(
    "--list-cards", is_flag=True, is_eager=True, expose_value=False, callback=_list_cards,
    help="List the cards and USB sticks that card: may erase, and exit.",
)  # fmt: skip


def media_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as the one argument `media`."""
    return add_options(_LIST_CARDS)(pass_value("media", MediaOptions, *_OPTIONS)(command))
