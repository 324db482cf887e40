"""Files that are opened once, so that what was checked is what is used. A user who may write a
folder can replace the file of a name between two accesses, but never that of a descriptor.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from boardfit.edge.disk.input_folder import open_below
from boardfit.edge.errors import InputError, IntegrityError, UnsafeInputError
from boardfit.edge.terminal.progress import Advance

_CHUNK = 1 << 20
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a pipe must not hold us up
    | getattr(os, "O_BINARY", 0)
)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
#: A file that changes while it is read is read again; not for ever.
_ATTEMPTS = 3


class FileIdentity(NamedTuple):
    """What changes when a file is replaced or written to by ordinary means."""

    device: int
    inode: int
    n_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def from_stat(cls, status: os.stat_result) -> FileIdentity:
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


class _Descriptor:
    """A descriptor that is closed with the last object that holds it."""

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)


class OpenedFile(os.PathLike[str]):
    """A regular file, held open. As text it is the user's path, for messages. As a path of the file
    system (`os.fspath`) it leads native code to the open file, even if another file has the name
    now. `sha256` is set where its content was verified.
    """

    def __init__(
        self,
        path: Path,
        descriptor: _Descriptor,
        *,
        sha256: str | None = None,
        beside: Callable[[str], OpenedFile | None] | None = None,
    ) -> None:
        self.path = path
        self.sha256 = sha256
        self._descriptor = descriptor
        self._open_beside = beside
        self._opened_as = self.identity

    @classmethod
    def open(cls, path: Path, *, below: Path | None = None) -> OpenedFile:
        """Open `path`, links followed: it is where the user pointed. With `below` they must not
        lead out of that folder, which a stranger made. Raises InputError for what is missing,
        unreadable or no regular file, UnsafeInputError for a link that leads out.
        """
        if below is None:
            return cls._from_descriptor(path, _open(path, path, _FLAGS))
        with _name_file_in_errors(path):
            number = open_below(below, path)
        return cls._from_descriptor(path, number)

    @classmethod
    def _from_descriptor(cls, path: Path, number: int) -> OpenedFile:
        descriptor = _Descriptor(number)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise InputError(f"{path}: expected a regular file, got a directory, pipe or device")
        return cls(path, descriptor)

    def replace(self, **changes: Any) -> OpenedFile:
        """The same open file with another `sha256` or `beside`."""
        kept = {"sha256": self.sha256, "beside": self._open_beside}
        found = OpenedFile(self.path, self._descriptor, **{**kept, **changes})
        found._opened_as = self._opened_as
        return found

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"OpenedFile({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parent(self) -> Path:
        """The folder that the user named; for messages only."""
        return self.path.parent

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def suffix(self) -> str:
        return self.path.suffix

    def __fspath__(self) -> str:
        # Opening this gives the same file at position 0. macOS has /dev/fd only, which shares one
        # position; there the user's path is used, and `check_unchanged` notices another file.
        held = f"/proc/self/fd/{self._descriptor.number}"
        return held if os.path.exists(held) else str(self.path)

    def name_path(self, text: str) -> str:
        """Replace the descriptor's path by the user's path in a message of native code."""
        return text.replace(os.fspath(self), str(self.path))

    def open_beside(self, name: str) -> OpenedFile | None:
        return self._open_beside(name) if self._open_beside is not None else None

    @property
    def identity(self) -> FileIdentity:
        return FileIdentity.from_stat(os.fstat(self._descriptor.number))

    def fileno(self) -> int:
        return self._descriptor.number

    def stat(self) -> os.stat_result:
        return os.fstat(self._descriptor.number)

    def reader(self) -> BinaryIO:
        """A file object at position 0, independent of all others."""
        return io.BufferedReader(_Reader(self._descriptor))

    def read(self, limit: int) -> bytes:
        """The whole content. Raises UnsafeInputError when it has more than `limit` bytes."""
        with self.reader() as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise UnsafeInputError(f"{self.path} has more than the {limit} bytes that it may have")
        return data

    def digest(self, progress: Advance | None = None) -> str:
        """Hex sha256 of content that did not change meanwhile; `progress` receives byte counts.
        Raises IntegrityError when another process keeps writing to the file.
        """
        for _ in range(_ATTEMPTS):
            # What is mapped and dirty already is written to without any time being moved.
            with contextlib.suppress(OSError):  # a read-only medium may have nothing to sync
                os.fsync(self._descriptor.number)
            before = self.identity
            digest = hashlib.sha256()
            with self.reader() as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    if progress:
                        progress(len(chunk))
            if self.identity == before:
                return digest.hexdigest()
        raise IntegrityError(
            f"{self.path} changes while it is read",
            next_step="wait until the other program has written it",
        )

    def check_unchanged(self) -> None:
        """Raise IntegrityError if verified content is no longer what it was, or, where native code
        opens files by name, if that name leads elsewhere.
        """
        # A new link or mode changes the identity, too: the content decides then.
        is_same = self.sha256 is None or self.identity == self._opened_as
        if not (is_same or self.digest() == self.sha256) or not self._is_still_named():
            raise IntegrityError(
                f"{self.path} changed while it was loaded",
                next_step="another program writes this folder: copy the bundle to your own folder",
            )

    def _is_still_named(self) -> bool:
        if os.fspath(self) != str(self.path):
            return True
        try:
            return FileIdentity.from_stat(os.stat(self.path))[:2] == self.identity[:2]
        except OSError:
            return False


@contextlib.contextmanager
def linked_folder(files: Sequence[Source]) -> Iterator[Path]:
    """Make a private folder in which the names of `files` lead to the open files themselves, for
    native code that looks into a folder. Nothing is copied.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="boardfit-")  # mode 0700
    except OSError as error:
        raise InputError(
            f"no temporary folder can be made: {error.strerror or error}",
            next_step="TMPDIR names a folder where one can",
        ) from None
    with made as name:
        for file in files:
            os.symlink(os.path.abspath(os.fspath(file)), os.path.join(name, file.name))
        yield Path(name)
    for file in files:
        if isinstance(file, OpenedFile):
            file.check_unchanged()


#: What checks and engines read: a file by its name, or one that is held open.
Source = Path | OpenedFile


class _Reader(io.RawIOBase):
    """Reads a descriptor with a position of its own."""

    def __init__(self, descriptor: _Descriptor) -> None:
        self._descriptor, self._at = descriptor, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor.number

    def readinto(self, buffer: Any) -> int:
        if hasattr(os, "preadv"):
            n = os.preadv(self.fileno(), [buffer], self._at)
        else:
            data = os.pread(self.fileno(), len(buffer), self._at)
            n = len(data)
            buffer[:n] = data
        self._at += n
        return n

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._at, os.fstat(self.fileno()).st_size)[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at


class OpenedFolder:
    """A folder, held open: files are opened below it and nowhere else, no link followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _Descriptor(_open(path, path, _FLAGS | _DIRECTORY))

    def fileno(self) -> int:
        return self._descriptor.number

    def open(self, name: str) -> OpenedFile:
        """Open a file by a relative path. Raises InputError for what is missing or unreadable,
        UnsafeInputError for a link on the way or at its end.
        """
        shown, held = self.path / name, self._descriptor
        *folders, last = name.split("/")
        for folder in folders:
            held = _Descriptor(_open(folder, shown, _FLAGS | _DIRECTORY | _NOFOLLOW, held.number))
        return OpenedFile._from_descriptor(
            shown, _open(last, shown, _FLAGS | _NOFOLLOW, held.number)
        )

    def find(self, name: str) -> OpenedFile | None:
        """The file with this plain name, None where nothing has it. Raises like `open`."""
        return self.open(name) if self.exists(name) else None

    def exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.fileno(), follow_symlinks=False)
        except OSError:
            return False
        return True


def _open(name: str | Path, shown: Path, flags: int, folder: int | None = None) -> int:
    with _name_file_in_errors(shown):
        try:
            return os.open(name, flags, dir_fd=folder)
        except OSError:
            if flags & _NOFOLLOW and folder is not None and _is_link(name, folder):
                raise UnsafeInputError(f"{shown} is a link, not a regular file") from None
            raise


@contextlib.contextmanager
def _name_file_in_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors of opening a file into errors that name `path`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: cannot be opened: {reason}") from None


def _is_link(name: str | Path, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
