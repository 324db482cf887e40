"""`card:/dev/sdX`: write an operating system's image with a bundle in it, and read it back.

Nothing is erased before the user typed the card's size. Nothing in use is erased: lsblk reports
what is mounted or part of something larger, and the kernel checks when the card is opened.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import click

from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.disk.data_files import find_trouble
from boardfit.edge.errors import DoesNotFitError, EngineError, IntegrityError, UsageError
from boardfit.edge.flash.flash import FlashOptions, FlashReport
from boardfit.edge.flash.gate import GateVerdict, try_here
from boardfit.edge.flash.media.cards import Disk, find_disk, list_disks, refuse_disk
from boardfit.edge.flash.media.image import ImageOptions, ImageTarget, check_target, flash_image
from boardfit.edge.flash.media.options import MediaOptions
from boardfit.edge.flash.target import FlashTarget
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import Progress, Reporter
from boardfit.edge.units import MIB, format_bytes, format_seconds, parse_bytes, printable

CHUNK = 4 * MIB
_MARK = 4096
_EVENLY = 16
_FLUSH_EVERY = 16 * CHUNK
_FILLER = 8 * MIB
#: The beginning is written last: a card that was not finished has no partition table.
_FIRST = MIB
_BLKFLSBUF, _BLKRRPART = 0x1261, 0x125F
_FALSE = "the card is false or worn out: do not use it"


class DeviceMedium:
    """A block device, held alone: the kernel refuses that for what is mounted or part of something
    else, and mounts nothing of it meanwhile.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            reason = error.strerror or str(error)
            trouble = find_trouble(__file__, "card_troubles.toml", reason, path=path, reason=reason)
            assert trouble is not None  # its last row is for every reason
            raise trouble from error
        self.n_bytes = os.lseek(self._fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        data = b""
        while len(data) < length:
            piece = os.pread(self._fd, length - len(data), offset + len(data))
            if not piece:
                raise OSError(errno.EIO, f"{self._path} ends at {offset + len(data)}")
            data += piece
        return data

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            n_bytes = os.pwrite(self._fd, view, offset)
            view, offset = view[n_bytes:], offset + n_bytes

    def settle(self) -> None:
        """Put everything written on the medium; what is read from now on comes from there."""
        os.fsync(self._fd)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._ioctl(_BLKFLSBUF)

    def reread_partitions(self) -> None:
        """Let the kernel look at the new table; it may not want to."""
        self._ioctl(_BLKRRPART)

    def _ioctl(self, request: int) -> None:
        import fcntl

        try:
            fcntl.ioctl(self._fd, request)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EBUSY, errno.EINVAL, errno.ENOTTY):
                raise

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def _explain_card_errors(place: str, at: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise IntegrityError(
            f"{place} fails while {at}: {error.strerror or error}",
            next_step="try another card or reader; see the kernel's log (dmesg)",
        ) from error


def mark_offsets(n_bytes: int) -> list[int]:
    """Return where marks are set on a card of `n_bytes`, ascending, block by block: at 0, at every
    power of two from 1 MiB on, at even distances, and at the end.
    """
    last = (n_bytes - _MARK) // _MARK * _MARK
    found = {0, last}
    power = MIB
    while power <= last:
        found.add(power)
        power *= 2
    found |= {last * i // _EVENLY // _MARK * _MARK for i in range(_EVENLY)}
    return sorted(offset for offset in found if 0 <= offset <= last)


def _mark(nonce: bytes, offset: int) -> bytes:
    seed = hashlib.sha256(nonce + offset.to_bytes(8, "little")).digest()
    return (seed + offset.to_bytes(8, "little")).ljust(64, b"\0") * (_MARK // 64)


def refuse_false_capacity(medium: DeviceMedium, place: str) -> None:
    """Set marks all over the medium and read them back. What was there is lost. Raises
    IntegrityError with the size that it has in truth, as far as that shows.

    False cards begin again at the start (address lines are missing, so that the true size is a
    power of two) or drop what lies behind. The idea is that of f3probe,
    https://fight-flash-fraud.readthedocs.io.
    """
    nonce = os.urandom(16)
    offsets = mark_offsets(medium.n_bytes)
    with _explain_card_errors(place, "its size is tested"):
        for offset in offsets:
            medium.write(offset, _mark(nonce, offset))
        for one, two in pairwise(offsets):
            if two - one > _FILLER + _MARK:  # between marks: more than a false card's cache keeps
                medium.write(one + _MARK, os.urandom(_FILLER))
                break
        medium.settle()
        found = {offset: medium.read(offset, _MARK) for offset in offsets}
    by_content = {_mark(nonce, offset): offset for offset in offsets}
    wrong = [offset for offset in offsets if found[offset] != _mark(nonce, offset)]
    if not wrong:
        return
    claim = f"{place} claims to hold {format_bytes(medium.n_bytes)}, but "
    wrapped = [
        by_content[found[offset]] - offset for offset in wrong if found[offset] in by_content
    ]
    if wrapped:
        raise IntegrityError(
            f"{claim}it begins again after {format_bytes(min(map(abs, wrapped)))}", next_step=_FALSE
        )
    good = [offset for offset in offsets if offset < wrong[0]]
    raise IntegrityError(
        f"{claim}it keeps nothing behind {format_bytes(wrong[0])} "
        f"(the last good mark is at {format_bytes(good[-1] if good else 0)})",
        next_step=_FALSE,
    )


def write_image(
    medium: DeviceMedium, image: BinaryIO, n_bytes: int, place: str, tell: Progress
) -> None:
    """Write an image of `n_bytes` to the medium's beginning, its first part last. Wipe the end,
    where an older GPT would have its backup. Raises IntegrityError when the card gives up.
    """
    with _explain_card_errors(place, "it is written"):
        medium.write(0, bytes(min(_FIRST, n_bytes)))
        if medium.n_bytes - n_bytes >= _FIRST:
            medium.write(medium.n_bytes - _FIRST, bytes(_FIRST))
        done = 0
        for start, end in ((_FIRST, n_bytes), (0, min(_FIRST, n_bytes))):
            image.seek(start)
            for offset in range(start, end, CHUNK):
                data = image.read(min(CHUNK, end - offset))
                medium.write(offset, data)
                done += len(data)
                if done % _FLUSH_EVERY < CHUNK:  # or the kernel's memory would be what is measured
                    medium.settle()
                tell(done, n_bytes)
            medium.settle()


def verify_image(
    medium: DeviceMedium, image: BinaryIO, n_bytes: int, place: str, tell: Progress
) -> None:
    """Compare the medium with the image, every byte read from the medium. Raises IntegrityError
    with the first place that differs.
    """
    with _explain_card_errors(place, "it is read back"):
        medium.settle()
        image.seek(0)
        for offset in range(0, n_bytes, CHUNK):
            wanted = image.read(min(CHUNK, n_bytes - offset))
            got = medium.read(offset, len(wanted))
            if got != wanted:
                at = offset + next(
                    i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b
                )
                raise IntegrityError(
                    f"{place} gives other bytes back than were written, first at byte {at} "
                    f"({format_bytes(at)})",
                    next_step=_FALSE,
                )
            tell(offset + len(wanted), n_bytes)


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
