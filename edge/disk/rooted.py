"""Use files below a folder that a stranger may have prepared: cards, shares, work folders.

A `Root` is opened once, by descriptor. Every name below it is reached component by component from
there, and no link is followed at any step. So no planted name leads out of the folder.

A folder that we may delete later carries a marker file (`MARKER`). Nothing is deleted because of
its name: `remove` takes a folder only where it, or a folder above it, is marked. A stranger can
plant a marker too; then only what lies in the stranger's own folder is deleted.

`work_beside` is the folder `OUT.partial/` in which a command makes OUT.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

from boardfit.edge.errors import UnsafeInputError, UsageError
from boardfit.edge.terminal.progress import Advance
from boardfit.edge.units import printable

#: Marks a folder as ours. Its presence counts, not its text: a power cut may lose the text.
MARKER = ".boardfit-owned"
MARKER_TEXT = b"boardfit made this folder and may delete it with everything in it.\n"
#: What new files are called until they are whole; random digits follow.
FRESH = ".boardfit-new-"
_FRESH_NAME = re.compile(rf"{re.escape(FRESH)}[0-9a-f]{{16}}")
FOLDER_MODE, FILE_MODE = 0o755, 0o644
#: Folders of ours are never nested this deep: a bundle's names have 255 characters at most.
MAX_DEPTH = 140
_CHUNK = 1 << 20
#: The lock of a work folder.
LOCK = ".lock"

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _SAFE
_IF_THERE = contextlib.suppress(FileNotFoundError, NotADirectoryError)


class Root:
    """One folder and what is below it. Paths are relative, with forward slashes; "" is the root.

    Methods raise UnsafeInputError at a link, pipe or device in place of a file or folder of ours,
    and OSError. `step` is called before every change, so that a test can make it the last one. With
    `fixed_modes` the umask does not count.
    """

    def __init__(
        self, path: Path, step: Callable[[], None] = lambda: None, *, fixed_modes: bool = False
    ) -> None:
        self.path, self._step, self._fixed_modes = path, step, fixed_modes
        self._all_ours = False  # whether everything below is ours, root included
        self._fd = _open_root(path)

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def open_below(self, path: str) -> Root:
        with self._folder(path) as fd:
            deeper = copy.copy(self)
            deeper.path, deeper._fd = self.path / path, os.dup(fd)
            deeper._all_ours = self._is_in_ours(path)
        return deeper

    def stat(self, path: str) -> os.stat_result | None:
        """What a name stands for, links not followed; None when it is missing."""
        if not path:
            return os.fstat(self._fd)
        with _IF_THERE, self._parent(path) as (at, name):
            return os.stat(name, dir_fd=at, follow_symlinks=False)
        return None

    def entries(self, path: str) -> dict[str, os.stat_result]:
        """What the names in a folder stand for, without those that went away meanwhile."""
        found = {}
        with _IF_THERE, self._folder(path) as fd:
            for name in sorted(os.listdir(fd)):
                with contextlib.suppress(FileNotFoundError):
                    found[name] = os.stat(name, dir_fd=fd, follow_symlinks=False)
        return found

    def walk(self, path: str) -> Iterator[tuple[str, os.stat_result]]:
        """Every name below a folder, relative to it; a folder comes before what is in it."""
        todo = [""]
        while todo:
            here = todo.pop()
            for name, info in self.entries(_join(path, here)).items():
                inner = _join(here, name)
                yield inner, info
                if stat.S_ISDIR(info.st_mode):
                    self._check_depth(_join(path, inner), inner.count("/"))
                    todo.append(inner)

    def readlink(self, path: str) -> str | None:
        """The target of a link, unchecked; None when there is no link."""
        with contextlib.suppress(OSError), self._parent(path) as (at, name):
            return os.readlink(name, dir_fd=at)
        return None

    def open(self, path: str) -> BinaryIO:
        return os.fdopen(self._open_file(path, os.O_RDONLY), "rb")

    def sha256(self, path: str, progress: Advance | None = None) -> str:
        """Hex sha256 of a regular file, read from the medium where the system can be asked to."""
        digest = hashlib.sha256()
        with self.open(path) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                if progress:
                    progress(len(chunk))
        return digest.hexdigest()

    def create(self, path: str, mode: int = FILE_MODE) -> BinaryIO:
        """A new file for writing. Raises FileExistsError when the name is taken."""
        fd = self._open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._set_mode(fd, mode)
        return os.fdopen(fd, "w+b")

    def resume(self, path: str) -> BinaryIO:
        """A file to go on with, or a new one. It must have no second name elsewhere."""
        try:
            return self.create(path)
        except FileExistsError:
            fd = self._open_file(path, os.O_RDWR)
        if os.fstat(fd).st_nlink > 1:
            os.close(fd)
            raise refusal(self.path / path, "has a second name (a hard link) elsewhere")
        return os.fdopen(fd, "r+b")

    def write(self, path: str, data: bytes, mode: int = FILE_MODE) -> None:
        """A small file: written under a fresh name at the root, fsynced, renamed."""
        fresh = fresh_name()
        try:
            self._step()
            with self.create(fresh, mode) as file:
                file.write(data)
                file.flush()
                self._step()
                os.fsync(file.fileno())
            self.rename(fresh, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh, dir_fd=self._fd)
            raise

    def make_folder(self, path: str) -> None:
        for depth in range(1, path.count("/") + 2):
            with self._parent("/".join(path.split("/")[:depth])) as (at, name):
                self._step()
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, FOLDER_MODE, dir_fd=at)
                    with self._into(at, name, path) as fd:
                        self._set_mode(fd, FOLDER_MODE)
        info = self.stat(path)
        if info is not None and stat.S_ISREG(info.st_mode):
            raise UsageError(
                f"{_show(self.path / path)} is a file where boardfit needs a folder of its own",
                next_step="look at it and move it away, or choose another place",
            )
        with self._folder(path):  # a link is refused
            pass

    def claim(self, path: str) -> bool:
        """Make a folder that is ours, or see that it is; whether it is new. An empty one is taken
        over, since a power cut may leave it unmarked. Raises UsageError for another owner's.
        """
        self.make_folder(path)
        with self._folder(path) as fd:
            if self.is_ours(path):
                return False
            if os.listdir(fd):
                raise foreign(self.path / path)
            self._step()
            with self.create(_join(path, MARKER)) as file:
                file.write(MARKER_TEXT)
                file.flush()
                os.fsync(file.fileno())
            self._step()
            os.fsync(fd)
        return True

    def is_ours(self, path: str) -> bool:
        """Whether a folder is marked."""
        info = self.stat(_join(path, MARKER))
        return info is not None and stat.S_ISREG(info.st_mode)

    def rename(self, source: str, target: str) -> None:
        """Rename a file over `target`, or a folder to a free name, and flush both folders."""
        with self._parent(source) as (a, old), self._parent(target) as (b, new):
            self._step()
            os.replace(old, new, src_dir_fd=a, dst_dir_fd=b)
            self._step()
            os.fsync(a)
            if os.fstat(a).st_ino != os.fstat(b).st_ino:
                os.fsync(b)

    def link(self, source: str, target: str) -> None:
        """A second name for a regular file. Raises OSError where the file system has no links."""
        self.open(source).close()  # a link or a pipe is refused
        self.remove(target)
        with self._parent(source) as (a, old), self._parent(target) as (b, new):
            self._step()
            os.link(old, new, src_dir_fd=a, dst_dir_fd=b, follow_symlinks=False)

    def symlink(self, text: str, path: str) -> None:
        fresh = fresh_name()
        self._step()
        os.symlink(text, fresh, dir_fd=self._fd)
        self.rename(fresh, path)

    def sync(self, path: str) -> None:
        info = self.stat(path)
        if info is not None and stat.S_ISDIR(info.st_mode):
            with self._folder(path) as fd:
                os.fsync(fd)
        else:
            with self.open(path) as file:
                os.fsync(file.fileno())

    def remove(self, path: str) -> None:
        """Remove a file, a link, or a folder of ours with all that is in it; missing is no error.
        Raises UsageError for a folder of another owner.
        """
        with _IF_THERE, self._parent(path) as (at, name):
            info = os.stat(name, dir_fd=at, follow_symlinks=False)
            self._step()
            if not stat.S_ISDIR(info.st_mode):
                os.unlink(name, dir_fd=at)
                return
            if not self._is_in_ours(path):
                raise foreign(self.path / path)
            self._remove_tree(at, name, path, 0)

    def remove_empty(self, path: str) -> None:
        """Remove an empty folder; missing is no error. Raises UsageError when it holds anything."""
        if self.entries(path):
            raise foreign(self.path / path)
        with contextlib.suppress(FileNotFoundError), self._parent(path) as (at, name):
            self._step()
            os.rmdir(name, dir_fd=at)

    def clear(self) -> None:
        """Empty a root that is ours, but for its marker and its lock."""
        for name in self.entries(""):
            if name not in (MARKER, LOCK):
                self.remove(name)

    def drop_foreign(self) -> None:
        """Remove all but folders and files with one name. A write into others appears elsewhere."""
        for name, info in list(self.walk("")):
            alone = stat.S_ISREG(info.st_mode) and info.st_nlink <= 1
            if not stat.S_ISDIR(info.st_mode) and not alone:
                self.remove(name)

    def sweep_fresh(self) -> None:
        """Remove the unfinished files that a killed run has left at the root."""
        for name, info in self.entries("").items():
            if _FRESH_NAME.fullmatch(name) and not stat.S_ISDIR(info.st_mode):
                self.remove(name)

    def _is_in_ours(self, path: str) -> bool:
        parts = path.split("/")
        above = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        return self._all_ours or any(map(self.is_ours, above))

    def _remove_tree(self, above: int, name: str, shown: str, depth: int) -> None:
        self._check_depth(shown, depth)
        with self._into(above, name, shown) as fd:
            names = os.listdir(fd)
            for inner in names:
                if inner == MARKER:
                    continue
                info = os.stat(inner, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    self._remove_tree(fd, inner, _join(shown, inner), depth + 1)
                else:
                    os.unlink(inner, dir_fd=fd)
            if MARKER in names:
                os.fsync(fd)  # after a power cut it must not disappear before the rest
                os.unlink(MARKER, dir_fd=fd)
        os.rmdir(name, dir_fd=above)

    @contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        """A descriptor of a folder, reached without following a link."""
        fd = os.dup(self._fd)
        try:
            shown = ""
            for name in _components(path):
                shown = _join(shown, name)
                deeper = self._open_at(fd, name, _FOLDER, shown)
                os.close(fd)
                fd = deeper
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _into(self, above: int, name: str, shown: str) -> Iterator[int]:
        fd = self._open_at(above, name, _FOLDER, shown)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        *folders, name = _components(path) or [""]
        if not name:
            raise UnsafeInputError(f"{self.path}: a name below it is needed")
        with self._folder("/".join(folders)) as fd:
            yield fd, name

    def _open_file(self, path: str, flags: int, mode: int = FILE_MODE) -> int:
        with self._parent(path) as (at, name):
            self._check_kind(at, name, path)  # to open a device may do something
            fd = self._open_at(at, name, flags | _SAFE, path, mode)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise refusal(self.path / path, "is no regular file")

    def _open_at(self, fd: int, name: str, flags: int, shown: str, mode: int = 0) -> int:
        try:
            return os.open(name, flags, mode, dir_fd=fd)
        except OSError:
            self._check_kind(fd, name, shown)
            raise

    def _check_kind(self, fd: int, name: str, shown: str) -> None:
        """Refuse all but a file, a folder and a free name."""
        try:
            kind = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        except OSError:
            return
        if stat.S_ISLNK(kind):
            raise refusal(self.path / shown, "is a link")
        if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
            raise refusal(self.path / shown, "is a pipe or a device")

    def _set_mode(self, fd: int, mode: int) -> None:
        """FAT and some shares have no permissions of their own."""
        if self._fixed_modes:
            with contextlib.suppress(OSError):
                os.fchmod(fd, mode)

    def _check_depth(self, shown: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise refusal(self.path / shown, f"is nested deeper than {MAX_DEPTH} folders")


def refusal(path: Path, what: str) -> UnsafeInputError:
    """The error for something that is not the file or folder of ours that it should be."""
    return UnsafeInputError(
        f"{_show(path)} {what}; boardfit follows no link there and writes into nothing that leads "
        "elsewhere",
        next_step="look at it, move it away, then run the same command again",
    )


def foreign(path: PurePath) -> UsageError:
    """The error for a folder that is in our way and that we did not make."""
    return UsageError(
        f"{_show(path)} is a folder that boardfit did not make (there is no {MARKER} in it): it "
        "stays unchanged",
        next_step="look at it and move it away, or choose another place",
    )


def _show(path: PurePath | str) -> str:
    """A path as text, whole: it has to be found again."""
    return printable(str(path), limit=4096)


def fresh_name() -> str:
    """A random name, which no other program can have taken before."""
    return f"{FRESH}{secrets.token_hex(8)}"


def _components(path: str) -> list[str]:
    """The names in a relative path. Raises UnsafeInputError for one that could lead out."""
    names = path.split("/") if path else []
    if any(name in ("", ".", "..") or "\0" in name for name in names):
        raise UnsafeInputError(f"{printable(path)!r} is not a plain relative path")
    return names


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _open_root(path: Path) -> int:
    if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
        raise UsageError(
            "this system cannot open files without following links",
            next_step="run boardfit on Linux or macOS (on Windows: in WSL)",
        )
    path = path.absolute()
    try:
        return os.open(path, _FOLDER)
    except OSError as error:
        if path.is_symlink():
            raise UnsafeInputError(
                f"{_show(path)} is a link to {_show(os.readlink(path))}",
                next_step="if that is the folder you mean, give its own path",
            ) from None
        raise error from None


#: Where a replaced output lies until the new one is in its place.
_REPLACED = "replaced"


class Work:
    """The folder `OUT.partial/`, held alone. `root` is what is in it, `path` where it lies."""

    def __init__(self, parent: Root, root: Root, output: Path) -> None:
        self.root, self.path, self.output = root, root.path, output
        self._parent, self._name = parent, root.path.name

    def publish(
        self,
        made: str,
        may_replace: Callable[[Path], bool] | None = None,
        *,
        replace_file: bool = False,
    ) -> None:
        """Rename `made`, in this folder, to the output; then remove this folder. Raises UsageError
        for a folder there, unless `may_replace` allows it, and for a file without `replace_file`.
        """
        parent, target = self._parent, self.output.absolute().name
        info = parent.stat(target)
        if info is None or stat.S_ISDIR(info.st_mode) or not replace_file:
            check_free(self.output, may_replace)
        if info is not None and stat.S_ISDIR(info.st_mode):
            parent.rename(target, f"{self._name}/{_REPLACED}")
        parent.rename(f"{self._name}/{made}", target)
        parent.remove(self._name)

    def _take_back(self) -> None:
        """Put a replaced output back that was put aside just before a run was killed."""
        parent, target = self._parent, self.output.absolute().name
        if self.root.stat(_REPLACED) and not parent.stat(target):
            parent.rename(f"{self._name}/{_REPLACED}", target)
        self.root.remove(_REPLACED)


def check_free(output: Path, may_replace: Callable[[Path], bool] | None = None) -> None:
    """Raise UsageError unless `output` is free, or a folder that `may_replace` allows."""
    if not os.path.lexists(output):
        return
    if may_replace is None:
        raise UsageError(f"{output} exists", next_step="remove it, or choose another -o")
    if output.is_symlink() or not output.is_dir() or not may_replace(output):
        raise UsageError(
            f"{output} holds what boardfit did not make; --force replaces nothing else",
            next_step="look at it and move it away, or choose another -o",
        )


def check_parent(output: Path) -> None:
    """Raise UsageError where no folder for `output` can be made."""
    parent = next(path for path in output.absolute().parents if os.path.lexists(path))
    if not parent.is_dir():
        raise UsageError(f"{parent} is not a folder", next_step="choose another -o")


@contextmanager
def work_beside(
    output: Path, what: str, *, resume: bool = False, stale: Sequence[str] = ()
) -> Iterator[Work]:
    """Hold `OUT.partial/` alone: made here, or left by an interrupted run of ours.

    Folders above `output` are made as they are needed. With `resume` its content is kept, but for
    `stale` names and for what leads elsewhere, and it stays when the command fails. Else it is
    emptied first, and removed when the command fails.
    Raises UsageError when another `what` (build, pull) works there, or the folder is not ours.
    """
    absolute = output.absolute()
    name = f"{absolute.name}.partial"
    absolute.parent.mkdir(parents=True, exist_ok=True)
    with Root(absolute.parent.resolve()) as parent:
        parent.claim(name)
        with parent.open_below(name) as root, _lock(root, what):
            work = Work(parent, root, output)
            work._take_back()
            for each in stale:
                root.remove(each)
            root.drop_foreign() if resume else root.clear()
            try:
                yield work
            except BaseException:
                if not resume:
                    parent.remove(name)
                raise


@contextmanager
def _lock(root: Root, what: str) -> Iterator[None]:
    with root.resume(LOCK) as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another {what} is writing {root.path}",
                next_step="wait for it, or choose another -o",
            ) from None
        yield


def open_to_append(path: Path) -> BinaryIO:
    """A regular file to append to, made if it is missing. Its folder is the user's own.
    Raises UnsafeInputError for a link, or a file with a second name.
    """
    with Root(path.absolute().parent.resolve()) as folder:
        file = folder.resume(path.name)
    file.seek(0, os.SEEK_END)
    return file
