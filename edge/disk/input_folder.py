"""Files of a folder that a stranger made: a checkpoint, a download, an unpacked archive.

A link in such a folder may lead to another file of the same folder. It may not lead out: a link
named LICENSE would carry a private key into a bundle. One exception is the hub's cache, where a
snapshot is a folder of links into `blobs` of the same repository. A renamed one is known by what it
holds: `blobs`, the snapshots, and nothing but what the hub's own tools write beside them.

models--owner--name/snapshots/COMMIT/config.json -> ../../blobs/SHA
"""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.units import printable

_HUB_KINDS = ("models--", "datasets--", "spaces--")
_BLOBS = "blobs"
_BESIDE_BLOBS = frozenset((_BLOBS, "refs", "snapshots", ".no_exist", ".locks"))
# Opening a pipe must not wait, and what was checked must not become a link meanwhile.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def is_file_below(folder: Path, name: str) -> bool:
    """Whether `folder` holds a file `name`; a folder is none. Raises UnsafeInputError for a link
    that leads out of the folder, or for a pipe or a device.
    """
    path = folder / name
    _, real = _resolve(folder, path)
    try:
        mode = os.lstat(real).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{printable(str(path))}: cannot be read: {error}") from None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return stat.S_ISREG(mode)
    kind = "a link that leads in a circle" if stat.S_ISLNK(mode) else "a pipe, socket or device"
    raise UnsafeInputError(
        f"{printable(str(path))}: expected a regular file, got {kind}",
        next_step="replace it by the file itself, or remove it",
    )


def open_below(folder: Path, path: Path) -> int:
    """A descriptor of the file at `path` below `folder`; links are followed inside it. Raises
    UnsafeInputError for a link that leads out, and OSError as `os.open` does.
    """
    root, real = _resolve(folder, path)
    if os.open not in os.supports_dir_fd:
        return os.open(real, _READ | _NO_LINK)
    *folders, name = real.relative_to(root).parts or (".",)
    at = os.open(root, os.O_RDONLY)
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=at)
            os.close(at)
            at = below
        return os.open(name, _READ | _NO_LINK, dir_fd=at)
    finally:
        os.close(at)


def _resolve(folder: Path, path: Path) -> tuple[Path, Path]:
    """The folder that `path` really lies in, without links, and the real path of `path` itself."""
    real = Path(os.path.realpath(path))
    for root in _roots(Path(os.path.realpath(folder))):
        if real.is_relative_to(root):
            return root, real
    is_lost = not os.path.lexists(real)
    next_step = "replace the link by the file, if you trust what it points to"
    if is_lost and real.parent.name == _BLOBS:
        next_step = (
            "copy the whole folder of the hub's cache (models--OWNER--NAME), or the files behind "
            "the links: cp -rL"
        )
    raise UnsafeInputError(
        f"{printable(str(path))}: leads out of its folder, to {printable(str(real))}"
        f"{', which is not there' if is_lost else ''}; a file of the folder itself is expected",
        next_step=next_step,
    )


def _roots(folder: Path) -> Iterator[Path]:
    yield folder
    for at, part in enumerate(folder.parts):
        if part == "snapshots" and folder.parts[at - 1].startswith(_HUB_KINDS):
            yield Path(*folder.parts[:at], _BLOBS)
    for cache in folder.parents[:2]:
        if _is_cache(cache, folder.relative_to(cache).parts[0]):
            yield cache / _BLOBS


def _is_cache(folder: Path, snapshots: str) -> bool:
    """Whether a folder holds the blobs of a hub's cache, its snapshots and nothing else."""
    known = {snapshots, *_BESIDE_BLOBS}
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in islice(entries, len(known) + 1)}
    except OSError:
        return False
    return _BLOBS in names and snapshots != _BLOBS and names <= known
