"""A board's files: the few operations that releases need, and the same on this machine's own disk.

Every operation that changes something is durable when it returns, and whole or absent after a power
cut. Paths are relative to the root, with forward slashes. No link is followed below the root: a
card, or another user of the board, may have put one there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import psutil

from boardfit.edge.disk.data_files import find_trouble
from boardfit.edge.disk.rooted import Root
from boardfit.edge.errors import EdgeError, InputError, UnsafeInputError, UsageError
from boardfit.edge.slots.faults import fault_point
from boardfit.edge.slots.layout import CURRENT, LOCK
from boardfit.edge.terminal.progress import Advance

_Seen = TypeVar("_Seen")
Kind = Literal["file", "folder", "link", "other"]
_COPY = 1 << 20
#: Errors of a file system in trouble. Any other error of a link means that it has no links.
_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
_LOCK_FOLDER = f"{LOCK}.d"
_LOCK_OWNER = f"{_LOCK_FOLDER}/owner"


@dataclass(frozen=True)
class BoardEntry:
    """One name on the board; `n_bytes` is a file's size, `n_names` how many names it has."""

    kind: Kind
    n_bytes: int
    n_names: int = 1

    @classmethod
    def from_mode(cls, mode: int, n_bytes: int, n_names: int = 1) -> BoardEntry:
        """From a mode with the kind in it, as `stat` has it."""
        if stat.S_ISREG(mode):
            return cls("file", n_bytes, n_names)
        kind: Kind = "link" if stat.S_ISLNK(mode) else "other"
        return cls("folder" if stat.S_ISDIR(mode) else kind, 0)

    @property
    def can_go_on(self) -> bool:
        """Whether more may be written into it: a file that has no second name elsewhere."""
        return self.kind == "file" and self.n_names <= 1


class BoardFiles(ABC):
    """Files below `root`, the absolute path by which the board names it. Methods raise EdgeError,
    whose message names the place. A place that is only read changes nothing.
    """

    root: str

    def read_only_error(self) -> EdgeError:
        """The error of a change in a place that is only read."""
        return InputError(f"{self.root} is read-only")

    def prepare(self) -> None:
        """Make the root if it is missing."""
        return

    @abstractmethod
    def entries(self, folder: str) -> dict[str, BoardEntry]:
        """Names in a folder; empty when it is missing."""

    @abstractmethod
    def tree(self, folder: str) -> dict[str, BoardEntry]:
        """Every name below a folder, relative to it; empty when it is missing."""

    @abstractmethod
    def read(self, path: str, limit: int) -> bytes | None:
        """A small file; None when it is missing, no regular file, or larger than `limit`."""

    def link_target(self, path: str) -> str | None:
        """Where a link leads, unchecked; None when there is no link. For `pointer`."""
        raise NotImplementedError

    @abstractmethod
    def digests(self, paths: Sequence[str]) -> dict[str, str | None]:
        """sha256 of files, read from the medium; None for one that cannot be read."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes that this user may still write."""

    @abstractmethod
    def used_bytes(self, paths: Sequence[str]) -> dict[str, int]:
        """Bytes that each tree takes on the medium; 0 for a missing one."""

    def pointer(self) -> str | None:
        """The target of `current`, unchecked: of a link, or of a small file in its place."""
        if (target := self.link_target(CURRENT)) is not None:
            return target
        data = self.read(CURRENT, 1024)
        return None if data is None else data.decode("utf-8", "replace").strip()

    def write(self, path: str, data: bytes) -> None:
        """A small file, written beside, fsynced, renamed."""
        raise self.read_only_error()

    def make_folder(self, path: str) -> None:
        """A folder and its parents."""
        raise self.read_only_error()

    def claim(self, path: str) -> None:
        """Make a folder of ours, or see that it is one. Raises UsageError for another's."""
        raise self.read_only_error()

    def rename(self, source: str, target: str) -> None:
        """Rename a file over `target`, or a folder to a free name."""
        raise self.read_only_error()

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and folders that are ours. Raises UsageError for another's."""
        raise self.read_only_error()

    def link(self, source: str, target: str) -> None:
        """A second name for a file; a copy where the file system has no links."""
        raise self.read_only_error()

    def copy(self, source: str, target: str) -> None:
        """A copy on the board, sharing blocks where the file system can."""
        raise self.read_only_error()

    def point(self, target: str) -> None:
        """Make `current` a link to `target`, in one rename."""
        raise self.read_only_error()

    def sweep(self) -> None:
        """Remove the small files that a killed writer has left half written at the root."""
        return

    def sync(self, paths: Sequence[str]) -> None:
        """Flush files and folders to the medium."""
        return

    def settle(self, path: str) -> str | None:
        """Flush a file to the medium and read its sha256; None if it cannot be read."""
        return self.digests([path])[path]

    def lock(self, wait_s: float) -> AbstractContextManager[None]:
        """Hold the board's lock. Raises UsageError when another flash holds it for `wait_s`
        seconds.
        """
        return contextlib.nullcontext()


def lock_error(place: str, wait_s: float) -> UsageError:
    waited = f" (waited {wait_s:.0f} s)" if wait_s else ""
    return UsageError(
        f"another flash of {place} is running{waited}",
        next_step="wait for it to end, or use --wait 600",
    )


def disk_trouble(place: str, output: str, text: str) -> EdgeError | None:
    """The error for what a board's disk or a script on it complains of; `text` is shown of it."""
    return find_trouble(__file__, "troubles.toml", output, place=place, text=text)


def board_error(error: OSError, place: str) -> EdgeError:
    """What went wrong with a board's files, in words."""
    reason = error.strerror or str(error)
    return disk_trouble(place, reason, reason) or InputError(
        f"{place}: {reason}", next_step="flash again: the data already sent is kept"
    )


@contextlib.contextmanager
def explain_errors(place: str) -> Iterator[None]:
    """Turn the system's errors about a board's files into errors with a next step."""
    try:
        yield
    except EdgeError:
        raise  # some of them are OSErrors, too
    except OSError as error:
        raise board_error(error, place) from error


class LocalFiles(BoardFiles):
    """On a mounted card, a network share, or the board itself."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.root = str(self._root)

    @contextlib.contextmanager
    def _open_root(self) -> Iterator[Root]:
        """The root, opened anew: nothing may hold a card when it is to be taken out."""
        with explain_errors(self.root), Root(self._root, fault_point, fixed_modes=True) as root:
            yield root

    def _look(self, look: Callable[[Root], _Seen], nothing: _Seen) -> _Seen:
        """What is seen in the root; `nothing` where it is missing."""
        if not os.path.lexists(self._root):
            return nothing
        with self._open_root() as root:
            return look(root)

    def prepare(self) -> None:
        with explain_errors(self.root):
            fault_point()
            if not os.path.lexists(self._root):
                above = next(folder for folder in self._root.parents if folder.exists())
                with Root(above.resolve(), fixed_modes=True) as there:
                    there.make_folder(self._root.relative_to(above).as_posix())
                    there.sync("")
        with self._open_root():
            pass

    def entries(self, folder: str) -> dict[str, BoardEntry]:
        return self._look(lambda root: _as_entries(root.entries(folder).items()), {})

    def tree(self, folder: str) -> dict[str, BoardEntry]:
        return self._look(lambda root: _as_entries(root.walk(folder)), {})

    def read(self, path: str, limit: int) -> bytes | None:
        return self._look(lambda root: _read_small(root, path, limit), None)

    def write(self, path: str, data: bytes) -> None:
        with self._open_root() as root:
            root.write(path, data)

    def make_folder(self, path: str) -> None:
        with self._open_root() as root:
            root.make_folder(path)

    def claim(self, path: str) -> None:
        with self._open_root() as root:
            root.claim(path)

    def rename(self, source: str, target: str) -> None:
        with self._open_root() as root:
            root.rename(source, target)

    def remove(self, paths: Sequence[str]) -> None:
        with self._open_root() as root:
            for path in paths:
                root.remove(path)

    def sweep(self) -> None:
        with self._open_root() as root:
            root.sweep_fresh()

    def link(self, source: str, target: str) -> None:
        with self._open_root() as root:
            try:
                root.link(source, target)
            except OSError as error:
                if error.errno in _TROUBLE:
                    raise
                self.copy(source, target)

    def copy(self, source: str, target: str) -> None:
        with self._open_root() as root, root.open(source) as reader:
            self._copy(root, reader, target, 0)
        self.sync([target])

    def copy_into(
        self, source: Path, target: str, offset: int, progress: Advance | None = None
    ) -> None:
        """Copy `source` from `offset` to the same place in `target`; not flushed yet."""
        with self._open_root() as root, source.open("rb") as reader:
            self._copy(root, reader, target, offset, progress)

    def _copy(
        self,
        root: Root,
        reader: BinaryIO,
        target: str,
        offset: int,
        progress: Advance | None = None,
    ) -> None:
        fault_point()
        with root.resume(target) as writer:
            reader.seek(offset)
            writer.seek(offset)
            writer.truncate()
            while chunk := reader.read(_COPY):
                fault_point()
                writer.write(chunk)
                if progress:
                    progress(len(chunk))

    def sync(self, paths: Sequence[str]) -> None:
        with self._open_root() as root:
            fault_point()
            for path in paths:
                root.sync(path)

    def digests(self, paths: Sequence[str]) -> dict[str, str | None]:
        with self._open_root() as root:
            return {path: _digest(root, path) for path in paths}

    def settle(self, path: str) -> str | None:
        entry = self.entries(path.rpartition("/")[0]).get(path.rpartition("/")[2])
        if entry is None or entry.kind != "file":
            return None
        self.sync([path])
        return self.digests([path])[path]

    def free_bytes(self) -> int:
        with explain_errors(self.root):
            return shutil.disk_usage(self._root).free

    def used_bytes(self, paths: Sequence[str]) -> dict[str, int]:
        # A file with a second name elsewhere is not freed by removing this one.
        return {
            path: sum(e.n_bytes for e in self.tree(path).values() if e.can_go_on) for path in paths
        }

    def link_target(self, path: str) -> str | None:
        return self._look(lambda root: root.readlink(path), None)

    def point(self, target: str) -> None:
        with self._open_root() as root:
            try:
                root.symlink(target, CURRENT)
            except OSError as error:
                if error.errno in _TROUBLE:
                    raise
                # FAT, exFAT, some network shares
                root.write(CURRENT, target.encode() + b"\n")

    @contextlib.contextmanager
    def lock(self, wait_s: float) -> Iterator[None]:
        with self._open_root() as root:
            handle = root.resume(LOCK)
        with handle:
            end_s = time.monotonic() + wait_s
            while not (_try_flock(handle.fileno(), self.root) and not self._folder_is_locked()):
                if time.monotonic() >= end_s:
                    raise lock_error(self.root, wait_s)
                time.sleep(0.2)
            with explain_errors(self.root), Root(self._root, fixed_modes=True) as root:
                _unlock_folder(root)
                root.make_folder(_LOCK_FOLDER)
                with root.create(_LOCK_OWNER) as owner:
                    owner.write(f"{os.getpid()} {_boot_id()}\n".encode())
            try:
                yield
            finally:
                with contextlib.suppress(OSError, EdgeError), Root(self._root) as root:
                    _unlock_folder(root)

    def _folder_is_locked(self) -> bool:
        """The other lock, that of boards without `flock`: see `boardfit.edge.flash.shell_files`."""
        owner = (self.read(_LOCK_OWNER, 200) or b"").decode("utf-8", "replace").strip()
        pid, _, boot = owner.partition(" ")
        return boot == _boot_id() and pid.isdecimal() and psutil.pid_exists(int(pid))


def _unlock_folder(root: Root) -> None:
    """Remove the lock's folder; one that holds anything else stays, and is an error."""
    root.remove(_LOCK_OWNER)
    root.remove_empty(_LOCK_FOLDER)


def _try_flock(handle: int, place: str) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise board_error(error, f"locking {place}") from None
    return True


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _as_entries(found: Iterable[tuple[str, os.stat_result]]) -> dict[str, BoardEntry]:
    return {
        name: BoardEntry.from_mode(info.st_mode, info.st_size, info.st_nlink)
        for name, info in found
    }


def _read_small(root: Root, path: str, limit: int) -> bytes | None:
    info = root.stat(path)
    if info is None or not stat.S_ISREG(info.st_mode) or info.st_size > limit:
        return None
    with root.open(path) as file:
        data = file.read(limit + 1)
    return data if len(data) <= limit else None


def _digest(root: Root, path: str) -> str | None:
    """A file's sha256; None when it cannot be read, or is no file."""
    try:
        return root.sha256(path)
    except (OSError, UnsafeInputError):
        return None
