"""Write files that are complete or absent: write under a temporary name, fsync, rename."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def fsync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut, where directories can be opened (not
    Windows).
    """
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A fresh file that becomes `path`, fsynced and in one rename, unless the block fails. What is
    at `path`, a link too, is replaced and never written into.
    """
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is reported without a name
        raise
    fsync_directory(path.parent)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader, or a power cut, sees the old file or the new one."""
    with new_file(path, mode=mode) as file:
        file.write(data)


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes at `target`, whose folder is made: shared where the file system can, else
    copied.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
