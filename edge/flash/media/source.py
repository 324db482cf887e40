"""Unpack or copy a downloaded disk image into a working file, while no other program uses it.

The first bytes show how it is packed. Zeros become holes. A packed image may claim any size, so
unpacking stops where the disk's free space ends, and its dictionary may not take more memory than
the packers' own greatest settings do.
"""

import contextlib
import fcntl
import gzip
import lzma
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.errors import DoesNotFitError, EngineMissingError, InputError, UsageError
from boardfit.edge.process.child import find_program, start_child
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import MIB, format_bytes

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
    space, EngineMissingError when no zstd is there.
    """
    packing = detect_packing(source)
    total = source.stat().st_size
    room = require_room(folder, 0 if packing else source.stat().st_blocks * 512)
    if packing is None:
        chunks, room = _read_plain(source, progress), total
    else:
        chunks = _read_packed(source, packing, total, progress)
    n_bytes = 0
    for offset, chunk in chunks:
        n_bytes = offset + len(chunk)
        if n_bytes > room:
            raise DoesNotFitError(
                f"{source} does not fit on this disk: {format_bytes(max(0, room))} available, it "
                "unpacks to more than that; nothing was changed",
                next_step=_MORE_ROOM,
            )
        write_sparse(target, offset, chunk)
    if packing is None:
        n_bytes = total
    target.truncate(n_bytes)
    return n_bytes


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


def _read_plain(source: Path, progress: Progress) -> Iterator[tuple[int, bytes]]:
    """(offset, chunk) of a plain file, holes left out where the system reports them."""
    total = source.stat().st_size
    with source.open("rb", buffering=0) as file:
        offset = 0
        while offset < total:
            if hasattr(os, "SEEK_DATA"):
                try:
                    offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
                except OSError:  # nothing but a hole up to the end
                    break
            file.seek(offset)
            chunk = file.read(CHUNK)
            if not chunk:
                break
            yield offset, chunk
            offset += len(chunk)
            progress(offset, total)
    progress(total, total)


def _read_packed(
    source: Path, packing: Packing, total: int, progress: Progress
) -> Iterator[tuple[int, bytes]]:
    offset = 0
    opened = {"xz": _xz_chunks, "gz": _gz_chunks, "zst": _zst_chunks}[packing]
    try:
        for chunk, n_read in opened(source):
            yield offset, chunk
            offset += len(chunk)
            progress(min(n_read, total), total)
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise InputError(
            f"{source} is damaged or was cut off: {error}",
            next_step="download it again and compare its sha256 with the published one",
        ) from None


def _xz_chunks(source: Path) -> Iterator[tuple[bytes, int]]:
    """Of all streams in the file, as parallel packers write several."""
    with source.open("rb") as file:
        data = b""
        while True:
            decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
            while not decoder.eof:
                if decoder.needs_input and not data:
                    data = file.read(1 << 16)
                    if not data:
                        raise EOFError("the compressed stream ends too early")
                chunk = decoder.decompress(data, CHUNK)
                data = b""
                if chunk:
                    yield chunk, file.tell()
            data = decoder.unused_data or file.read(1 << 16)
            while data and not (data := data.lstrip(b"\0")):  # padding between streams
                data = file.read(1 << 16)
            if not data:
                return


def _gz_chunks(source: Path) -> Iterator[tuple[bytes, int]]:
    with source.open("rb") as file, gzip.GzipFile(fileobj=file) as unpacked:
        while chunk := unpacked.read(CHUNK):
            yield chunk, file.tell()


def _zst_chunks(source: Path) -> Iterator[tuple[bytes, int]]:
    program = find_program("zstd")
    if program is None:
        raise EngineMissingError(
            f"{source} is packed with zstd, which is not installed",
            next_step="apt install zstd (brew install zstd), or use the .xz of the same image",
        )
    with source.open("rb") as file:
        process = start_child([program, "-dcq"], stdin=file)
        assert process.stdout is not None and process.stderr is not None
        try:
            while chunk := process.stdout.read(CHUNK):
                # The program reads through the same open file, so that its place is ours.
                yield chunk, os.lseek(file.fileno(), 0, os.SEEK_CUR)
            output = process.stderr.read().decode("utf-8", "replace").strip()
            if process.wait() != 0:
                raise EOFError(output.rpartition(": ")[2] or "zstd failed")
        finally:
            with suppress(OSError):
                process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


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
