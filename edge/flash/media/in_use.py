"""Check whether another program uses an image now: a mounted loop device, an emulator, another
flash. The check reads sysfs and the locks of qemu and losetup.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from boardfit.edge.errors import UsageError

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
    """Hold an image: shared for reading, alone for writing.

    Raises UsageError when another program holds it or may be writing to it.
    """
    refuse_in_use(path)
    if importlib.util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

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
