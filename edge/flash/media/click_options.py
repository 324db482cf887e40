"""Options of `edge flash` that only disk images and cards have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from boardfit.edge.flash.media.options import MediaOptions

F = TypeVar("F", bound=Callable[..., Any])
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


def media_options(function: F) -> F:
    """Add the options to a command, which gets them as the one argument `media`."""

    @functools.wraps(function)
    def wrapped(**arguments: Any) -> Any:
        given = {f.name: arguments.pop(f.name) for f in fields(MediaOptions)}
        return function(media=MediaOptions(**given), **arguments)

    decorated: Any = wrapped
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return click.option(  # type: ignore[no-any-return]
        "--list-cards", is_flag=True, is_eager=True, expose_value=False, callback=_list_cards,
        help="List the cards and USB sticks that card: may erase, and exit.",
    )(decorated)  # fmt: skip
