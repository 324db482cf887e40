"""A board's files: the few operations that releases need, and the same on this machine's own disk.

Every operation that changes something is durable when it returns, and whole or absent after a
power cut. Paths are relative to the root, with forward slashes.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import psutil

from edge.atomic import fsync_directory
from edge.bundle import sha256_file
from edge.errors import DoesNotFitError, EdgeError, InputError, UsageError
from edge.slots.faults import fault_point
from edge.slots.layout import CURRENT, LOCK

Kind = Literal["file", "folder", "link", "other"]
_COPY = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One name on the board; `n_bytes` is a file's size."""

    kind: Kind
    n_bytes: int


class BoardFiles(Protocol):
    """Files below one root. Methods raise EdgeError; the message names the place."""

    @property
    def root(self) -> str:
        """The root as the board names it, absolute."""

    def prepare(self) -> None:
        """Make the root if it is missing."""

    def entries(self, folder: str) -> dict[str, Entry]:
        """Names in a folder; empty when it is missing."""

    def tree(self, folder: str) -> dict[str, Entry]:
        """Every name below a folder, relative to it; empty when it is missing."""

    def read(self, path: str, limit: int) -> bytes | None:
        """A small file; None when it is missing, no regular file, or larger than `limit`."""

    def write(self, path: str, data: bytes) -> None:
        """A small file, written beside, fsynced, renamed."""

    def make_folder(self, path: str) -> None:
        """A folder and its parents."""

    def rename(self, source: str, target: str) -> None:
        """Rename a file over `target`, or a folder to a free name."""

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files and trees; missing ones are no error."""

    def link(self, source: str, target: str) -> None:
        """A second name for a file; a copy where the file system has no links."""

    def copy(self, source: str, target: str) -> None:
        """A copy on the board, sharing blocks where the file system can."""

    def sync(self, paths: Sequence[str]) -> None:
        """Flush files and folders to the medium."""

    def digests(self, paths: Sequence[str]) -> dict[str, str | None]:
        """sha256 of files, read from the medium; None for one that cannot be read."""

    def settle(self, path: str) -> str | None:
        """Flush a file to the medium and read its sha256; None if it cannot be read."""

    def free_bytes(self) -> int:
        """Bytes that this user may still write."""

    def used_bytes(self, paths: Sequence[str]) -> dict[str, int]:
        """Bytes that each tree takes on the medium; 0 for a missing one."""

    def pointer(self) -> str | None:
        """What `current` says, unchecked."""

    def point(self, target: str) -> None:
        """Make `current` say `target`, in one rename."""

    def lock(self, wait_s: float) -> AbstractContextManager[None]:
        """Hold the board alone. Raises UsageError when somebody else does for `wait_s` seconds."""


def lock_refused(place: str, wait_s: float) -> UsageError:
    waited = f" (waited {wait_s:.0f} s)" if wait_s else ""
    return UsageError(
        f"somebody else is flashing {place} right now{waited}",
        next_step="wait for it to end, or let this one wait: --wait 600",
    )


def board_error(error: OSError, place: str) -> EdgeError:
    """What went wrong with a board's files, in words, from an errno."""
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFitError(
            f"{place} is full: {said}; the release that was current still is",
            next_step="free some space there (edge slots lists the releases), then flash again",
        )
    if error.errno == errno.EROFS:
        return InputError(
            f"{place} is read-only", next_step="mount it writable: mount -o remount,rw …"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(
            f"{place} cannot be written by this user: {said}",
            next_step="choose a folder that belongs to the user, or chown it",
        )
    return InputError(f"{place}: {said}", next_step="flash again: what is there is kept")


class LocalFiles:
    """`BoardFiles` on a mounted card, a network share, or the board itself."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def root(self) -> str:
        return str(self._root)

    def _at(self, path: str) -> Path:
        return self._root / path

    def prepare(self) -> None:
        with self._errors():
            fault_point()
            if not self._root.is_dir():
                self._root.mkdir(parents=True)
                fsync_directory(self._root.parent)

    def entries(self, folder: str) -> dict[str, Entry]:
        with self._errors():
            try:
                names = os.listdir(self._at(folder))
            except (FileNotFoundError, NotADirectoryError):
                return {}
            return _entries({name: self._at(folder) / name for name in names})

    def tree(self, folder: str) -> dict[str, Entry]:
        top = self._at(folder)
        with self._errors():
            paths = [
                Path(here) / name
                for here, folders, files in os.walk(top)
                for name in (*folders, *files)
            ]
            return _entries({path.relative_to(top).as_posix(): path for path in paths})

    def read(self, path: str, limit: int) -> bytes | None:
        with self._errors():
            try:
                info = self._at(path).lstat()
                if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
                    return None
                return self._at(path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, path: str, data: bytes) -> None:
        target = self._at(path)
        beside = target.with_name(f".{target.name}.new")
        with self._errors():
            fault_point()
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                fault_point()
                os.fsync(file.fileno())
            fault_point()
            os.replace(beside, target)
            fault_point()
            fsync_directory(target.parent)

    def make_folder(self, path: str) -> None:
        with self._errors():
            fault_point()
            self._at(path).mkdir(parents=True, exist_ok=True)

    def rename(self, source: str, target: str) -> None:
        with self._errors():
            fault_point()
            os.replace(self._at(source), self._at(target))
            fault_point()
            for folder in {self._at(source).parent, self._at(target).parent}:
                fsync_directory(folder)

    def remove(self, paths: Sequence[str]) -> None:
        with self._errors():
            for path in map(self._at, paths):
                fault_point()
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def link(self, source: str, target: str) -> None:
        with self._errors():
            self._at(target).unlink(missing_ok=True)
            fault_point()
            try:
                os.link(self._at(source), self._at(target))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise
                self.copy(source, target)

    def copy(self, source: str, target: str) -> None:
        self.copy_into(self._at(source), target, 0)
        self.sync([target])

    def copy_into(
        self,
        source: Path,
        target: str,
        offset: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Copy `source` from `offset` to the same place in `target`; not flushed yet."""
        with self._errors():
            fault_point()
            path = self._at(target)
            with source.open("rb") as reader, path.open("r+b" if path.exists() else "wb") as writer:
                reader.seek(offset)
                writer.seek(offset)
                writer.truncate()
                while chunk := reader.read(_COPY):
                    fault_point()
                    writer.write(chunk)
                    if progress:
                        progress(len(chunk))

    def sync(self, paths: Sequence[str]) -> None:
        with self._errors():
            fault_point()
            for path in map(self._at, paths):
                if path.is_dir():
                    fsync_directory(path)
                    continue
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def digests(self, paths: Sequence[str]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for path in paths:
            try:
                _forget_cached(self._at(path))
                found[path] = sha256_file(self._at(path))
            except OSError:
                found[path] = None
        return found

    def settle(self, path: str) -> str | None:
        if self._at(path).is_file():
            self.sync([path])
        return self.digests([path])[path]

    def free_bytes(self) -> int:
        with self._errors():
            return shutil.disk_usage(self._root).free

    def used_bytes(self, paths: Sequence[str]) -> dict[str, int]:
        # A file with a second name elsewhere is not freed by removing this one.
        return {
            path: sum(
                info.st_size
                for here, _, names in os.walk(self._at(path))
                for name in names
                if (info := (Path(here) / name).lstat()).st_nlink == 1
            )
            for path in paths
        }

    def pointer(self) -> str | None:
        path = self._at(CURRENT)
        with self._errors():
            if path.is_symlink():
                return os.readlink(path)
            data = self.read(CURRENT, 1024)
            return None if data is None else data.decode("utf-8", "replace").strip()

    def point(self, target: str) -> None:
        beside = self._at(f".{CURRENT}.new")
        with self._errors():
            beside.unlink(missing_ok=True)
            fault_point()
            try:
                os.symlink(target, beside)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EROFS, errno.EACCES):
                    raise
                self.write(CURRENT, target.encode() + b"\n")  # FAT, exFAT, some network shares
                return
            fault_point()
            os.replace(beside, self._at(CURRENT))
            fault_point()
            fsync_directory(self._root)

    @contextlib.contextmanager
    def lock(self, wait_s: float) -> Iterator[None]:
        if importlib.util.find_spec("fcntl") is None:
            yield  # Windows: two flashes of one card at once are the user's own doing
            return
        with self._errors():
            handle = os.open(self._at(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        folder = self._at(f"{LOCK}.d")
        try:
            end_s = time.monotonic() + wait_s
            while not (_try_flock(handle, self.root) and not self._folder_is_locked()):
                if time.monotonic() >= end_s:
                    raise lock_refused(self.root, wait_s)
                time.sleep(0.2)
            with self._errors():
                folder.mkdir(exist_ok=True)
                (folder / "owner").write_text(f"{os.getpid()} {_boot_id()}\n")
            try:
                yield
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)

    def _folder_is_locked(self) -> bool:
        """The other lock, that of boards without `flock`: see `edge.flash.shell_files`."""
        owner = (self.read(f"{LOCK}.d/owner", 200) or b"").decode("utf-8", "replace").strip()
        pid, _, boot = owner.partition(" ")
        return boot == _boot_id() and pid.isdecimal() and psutil.pid_exists(int(pid))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise board_error(error, self.root) from error


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


def _entries(paths: Mapping[str, Path]) -> dict[str, Entry]:
    """What the paths stand for, without those that went away since their folder was read."""
    found = {}
    for name, path in paths.items():
        with contextlib.suppress(FileNotFoundError):
            found[name] = _entry(path)
    return found


def _entry(path: Path) -> Entry:
    info = path.lstat()
    if stat.S_ISREG(info.st_mode):
        return Entry("file", info.st_size)
    if stat.S_ISDIR(info.st_mode):
        return Entry("folder", 0)
    return Entry("link" if stat.S_ISLNK(info.st_mode) else "other", 0)


def _forget_cached(path: Path) -> None:
    """Ask the kernel to drop its clean copy, so that a digest reads what the medium holds."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
