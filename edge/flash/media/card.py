"""`card:/dev/sdX`: write an operating system's image with a bundle in it, and read it back.

Nothing is erased before the user typed the card's size. Nothing in use is erased: lsblk reports
what is mounted or part of something larger, and the kernel checks when the card is opened.
"""

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

import click

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.errors import DoesNotFitError, EngineError, UsageError
from boardfit.edge.flash.flash import FlashOptions, FlashReport
from boardfit.edge.flash.gate import GateVerdict, try_here
from boardfit.edge.flash.media.cards import Disk, find_disk, list_disks, refuse_disk
from boardfit.edge.flash.media.image import ImageOptions, ImageTarget, check_target, flash_image
from boardfit.edge.flash.media.options import MediaOptions
from boardfit.edge.flash.media.writer import (
    DeviceMedium,
    refuse_false_capacity,
    verify_image,
    write_image,
)
from boardfit.edge.flash.target import FlashTarget
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import Reporter
from boardfit.edge.units import format_bytes, format_seconds, parse_bytes, printable


def flash_card(
    bundle: Bundle,
    device: str,
    partition: int | None,
    media: MediaOptions,
    options: ImageOptions,
    reporter: Reporter,
    *,
    force: bool,
) -> FlashReport:
    """Make an image from `media.base` and the bundle, write it to the card and read it back.
    `partition` is the image's root, if it was named.

    Raises UsageError for a disk that is in use, not removable (unless `force`) or not confirmed,
    DoesNotFitError when the image is larger than the card, IntegrityError when the card is false or
    does not keep what is written.
    """
    assert media.base is not None
    disk = find_disk(device, list_disks())
    refuse_disk(disk, force=force)
    confirm(disk, media.yes_erase)
    started_s = time.monotonic()
    # Beside the image, where there is room for its like; else where temporary files go.
    beside = media.base.absolute().parent
    where = beside if os.access(beside, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".boardfit-", dir=where) as folder:
        image = Path(folder) / "card.img"
        options = dataclasses.replace(options, output=image)
        report = flash_image(bundle, ImageTarget(media.base, partition), options, reporter)
        write_card(disk.path, image, reporter)
    report.target = f"card:{disk.path}#{report.target.rpartition('#')[2]}"
    report.total_s = time.monotonic() - started_s
    report.notes.append(
        f"every byte of the image was read back from {disk.path}, whose capacity of "
        f"{disk.size_text} was checked; it can be taken out"
    )
    return report


def write_card(device: str, image: Path, reporter: Reporter) -> None:
    """Write an image file to a card, check its capacity before and every byte afterwards."""
    n_bytes = image.stat().st_size
    with contextlib.closing(DeviceMedium(device)) as medium, image.open("rb") as file:
        if n_bytes > medium.n_bytes:
            raise DoesNotFitError(
                f"{device} holds {format_bytes(medium.n_bytes)}; the image has "
                f"{format_bytes(n_bytes)}",
                shortfall_bytes=n_bytes - medium.n_bytes,
                next_step="a larger card, or a smaller model",
            )
        reporter.stage("checking that the card is as large as it claims")
        refuse_false_capacity(medium, device)
        reporter.stage(f"writing {format_bytes(n_bytes)} to {device}")
        began_s = time.monotonic()
        write_image(medium, file, n_bytes, device, reporter.progress)
        reporter.say(f"written in {format_seconds(time.monotonic() - began_s)}")
        reporter.stage("reading it back")
        verify_image(medium, file, n_bytes, device, reporter.progress)
        medium.reread_partitions()


def confirm(disk: Disk, typed: str | None) -> None:
    """Raise UsageError unless the disk's size was typed: by option, or on the terminal."""
    if typed is None:
        if not sys.stdin.isatty():
            raise UsageError(
                f"{disk.path} would be erased, and there is no terminal to ask",
                next_step=f"--yes-erase '{disk.size_text}'",
            )
        echo(f"This erases everything on\n  {disk.describe()}", err=True)
        typed = str(click.prompt(f"Type its size ({disk.size_text}) to go on", err=True))
    if not is_disk_size(disk, typed):
        raise UsageError(
            f"{printable(typed)!r} is not the size of {disk.path}, which is {disk.size_text}; "
            "nothing was erased",
            next_step="edge flash --list-cards shows which card is which",
        )


def is_disk_size(disk: Disk, typed: str) -> bool:
    """Whether the text is the disk's size: in bytes, or as exactly as it is shown."""
    try:
        n_bytes = parse_bytes(typed)
    except ValueError:
        return False
    return n_bytes == disk.n_bytes or format_bytes(n_bytes) == disk.size_text


def flash_media(
    bundle: Bundle, target: FlashTarget, options: FlashOptions, media: MediaOptions,
    reporter: Reporter, *, force: bool = False,
) -> FlashReport:  # fmt: skip
    """Flash an image or a card. Raises as `flash_image` and `flash_card` do, and EngineError when
    the bundle does not even answer on this machine.
    """
    image_options = ImageOptions(
        media.output, media.in_place, media.overwrite, media.owner_ids(), media.first_boot,
        media.boot_files(), signature=options.signature,
    )  # fmt: skip
    if target.scheme == "image":
        check_target(Path(target.folder), image_options)
    verdict = GateVerdict()
    if options.gate:
        reporter.stage("trying it on this machine")
        verdict = try_here(bundle)
    if verdict.failures:
        raise EngineError(
            f"{bundle.path} failed its health gate on this machine: "
            + "; ".join(verdict.failures)
            + f". {target} was not touched",
            next_step=verdict.next_step,
        )
    image_options = dataclasses.replace(image_options, health=verdict.health)
    if target.scheme == "image":
        where = ImageTarget(Path(target.folder), target.partition)
        report = flash_image(bundle, where, image_options, reporter)
    else:
        report = flash_card(
            bundle, target.folder, target.partition, media, image_options, reporter, force=force
        )
    report.notes += verdict.notes
    return report
