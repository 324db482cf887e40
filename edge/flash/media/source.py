"""Unpack or copy a downloaded disk image into a working file, while no other program uses it.

The first bytes show how it is packed. Zeros become holes. A packed image may claim any size, so
unpacking stops where the disk's free space ends, and its dictionary may not take more memory than
the packers' own greatest settings do.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Literal

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.errors import DoesNotFitError, EngineMissingError, InputError, UsageError
from boardfit.edge.process.child import child_environment, find_program, start_child
from boardfit.edge.process.listener import stop
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import MIB, format_bytes, printable

Packing = Literal["xz", "gz", "zst"]

CHUNK = 4 * MIB
#: Left free on the disk that the image is unpacked onto.
KEEP_FREE = 64 * MIB
_MORE_ROOM = "free some space, or write to another disk with --output"
#: `xz -9` needs 65 MiB to unpack; more than this is meant to hurt.
XZ_MEMORY = 256 * MIB
_MAGICS: tuple[tuple[Packing, bytes], ...] = (
    ("xz", b"\xfd7zXZ\x00"),
    ("gz", b"\x1f\x8b"),
    ("zst", b"\x28\xb5\x2f\xfd"),
)
_UNPACKERS: dict[Packing, tuple[list[str], str]] = {
    "xz": (["xz", "-dcq", f"--memlimit-decompress={XZ_MEMORY}"], "xz-utils"),
    "gz": (["gzip", "-dcq"], "gzip"),
    "zst": (["zstd", "-dcq"], "zstd"),
}
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7z", b"BZh": "bzip2", b"Rar!": "rar"}
_ZEROS = bytes(CHUNK)
_HOLE = 64 * 1024


def detect_packing(path: Path) -> Packing | None:
    """How a file is packed; None for a plain image. Raises InputError for an archive."""
    if os.path.exists(path):
        OpenedFile.open(path)
    with path.open("rb") as file:
        head = file.read(8)
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            raise InputError(
                f"{path} is a {name} archive; plain images and .xz, .gz and .zst are read",
                next_step="unpack it first, then give the .img in it",
            )
    return next((name for name, magic in _MAGICS if head.startswith(magic)), None)


def materialize(source: Path, target: BinaryIO, folder: Path, progress: Progress) -> int:
    """Write the plain image that `source` stands for into `target`, a fresh file in `folder`.
    Returns its size. `progress(done, total)` counts bytes of `source`.

    Raises InputError when it is damaged or cut off, DoesNotFitError when it is larger than the free
    space, EngineMissingError when what unpacks it is not there.
    """
    packing = detect_packing(source)
    total, n_bytes = source.stat().st_size, 0
    room = require_room(folder, 0 if packing else source.stat().st_blocks * 512)
    with source.open("rb", buffering=0) as file, _unpacked(source, file, packing) as plain:
        while chunk := plain.read(CHUNK):
            if packing and n_bytes + len(chunk) > room:
                raise DoesNotFitError(
                    f"{source} does not fit on this disk: {format_bytes(max(0, room))} available, "
                    "it unpacks to more than that; nothing was changed",
                    next_step=_MORE_ROOM,
                )
            write_sparse(target, n_bytes, chunk)
            n_bytes += len(chunk)
            # A program reads through the same open file, so that its place is ours.
            progress(min(file.tell(), total), total)
    target.truncate(n_bytes)
    return n_bytes


@contextlib.contextmanager
def _unpacked(source: Path, file: IO[bytes], packing: Packing | None) -> Iterator[IO[bytes]]:
    """What an open file holds, unpacked by a program that must end well."""
    if packing is None:
        yield file
        return
    command, package = _UNPACKERS[packing]
    if find_program(command[0]) is None:
        raise EngineMissingError(
            f"{source} is packed with {command[0]}, which is not installed",
            next_step=f"apt install {package} (brew install {command[0]}), or unpack it first",
        )
    process = start_child(command, stdin=file, env=child_environment(LC_ALL="C"))
    assert process.stdout is not None and process.stderr is not None
    try:
        yield process.stdout
        output = process.stderr.read().decode("utf-8", "replace").strip()
        if process.wait() != 0:
            line = printable(output.partition("\n")[0]).rpartition(": ")[2]
            raise InputError(
                f"{source} is damaged or was cut off: {line or command[0] + ' failed'}",
                next_step="download it again and compare its sha256 with the published one",
            )
    finally:
        stop(process)


def require_room(folder: Path, needed: int) -> int:
    """The bytes that work on an image may take. Raises DoesNotFitError for more than these."""
    room = shutil.disk_usage(folder).free - KEEP_FREE
    if needed > max(0, room):
        raise DoesNotFitError(
            f"this disk has too little space to work on the image: {format_bytes(needed)} needed, "
            f"{format_bytes(max(0, room))} available; nothing was changed",
            shortfall_bytes=needed - room,
            next_step=_MORE_ROOM,
        )
    return room


def write_sparse(target: BinaryIO, offset: int, chunk: bytes) -> None:
    """Write a chunk into a fresh file, leaving long runs of zeros out."""
    if chunk == _ZEROS[: len(chunk)]:
        return
    for at in range(0, len(chunk), _HOLE):
        piece = chunk[at : at + _HOLE]
        if piece != _ZEROS[: len(piece)]:
            target.seek(offset + at)
            target.write(piece)


def chunks(file: BinaryIO, start: int, n_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(offset from `start`, chunk) of a part of a file, read past Python's buffer: other programs
    write to it as well.
    """
    for offset in range(0, n_bytes, CHUNK):
        yield offset, os.pread(file.fileno(), min(CHUNK, n_bytes - offset), start + offset)


def write_changes(source: BinaryIO, target: BinaryIO, start: int, n_bytes: int) -> None:
    """Make `n_bytes` of `target` from `start` equal to `source`, writing only what differs, so that
    holes stay holes and stale bytes do not.
    """
    for offset, new in chunks(source, 0, n_bytes):
        old = os.pread(target.fileno(), len(new), start + offset)
        if old == new:
            continue
        for at in range(0, len(new), _HOLE):
            if (piece := new[at : at + _HOLE]) != old[at : at + _HOLE]:
                target.seek(start + offset + at)
                target.write(piece)


SYSFS = Path("/sys/block")


def loop_devices(path: Path, sysfs: Path = SYSFS) -> list[str]:
    """Loop devices that stand for this file and may write to it."""
    real = os.path.realpath(path)
    found = []
    for entry in sorted(sysfs.glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            read_only = (entry.parent.parent / "ro").read_text().strip() == "1"
            if entry.read_text().rstrip("\n") == real and not read_only:
                found.append(f"/dev/{entry.parent.parent.name}")
    return found


def refuse_in_use(path: Path) -> None:
    """Raise UsageError when a writable loop device stands for the file."""
    if devices := loop_devices(path):
        raise UsageError(
            f"{path} is in use as {devices[0]} (mounted?)",
            next_step=f"umount it, then losetup -d {devices[0]}",
        )


@contextlib.contextmanager
def locked_image(path: Path, *, writing: bool) -> Iterator[None]:
    """Hold an image: shared for reading, alone for writing. Raises UsageError when another program
    holds it or may be writing to it: a loop device, an emulator (qemu's locks), another flash.
    """
    refuse_in_use(path)
    with contextlib.ExitStack() as stack:
        try:
            file: BinaryIO = stack.enter_context(path.open("r+b"))
        except OSError:
            if writing:
                raise
            file = stack.enter_context(path.open("rb"))
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if writing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if file.writable():
                # Emulators lock single bytes (qemu: block/file-posix.c); any of them is in the way.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.lockf(file, fcntl.LOCK_UN)
        except BlockingIOError:
            raise UsageError(
                f"{path} is in use: another program holds a lock on it",
                next_step="end the emulator or the other flash, then run this again",
            ) from None
        yield
