"""Remember verified files, so that a 4 GB model on an SD card is read once and not before every
answer.

A file counts as unchanged while device, inode, size, mtime and ctime are the same: editing a byte
moves ctime, which no ordinary program can set back. That holds where both times are clearly older
than the look at the file, since a second edit within one tick of the clock moves nothing (the
kernel's ticks every 4 to 10 ms, FAT's every 2 s). It holds where edits through a mapping move ctime
too, as ext4, XFS, Btrfs and F2FS do for clean pages, and a file is synced before it is hashed;
elsewhere nothing is remembered. A write that began before is not held back: where keys are pinned,
every byte is hashed at every start.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.disk.opened_file import FileIdentity, OpenedFile
from boardfit.edge.terminal.progress import Advance

_MAX_ENTRIES = 512
#: How old a file's times must be: more than the coarsest tick, FAT's.
SETTLED_NS = 2_500_000_000
#: `f_type` of file systems that move ctime at every edit (linux/magic.h): ext2 to ext4, XFS, Btrfs,
#: F2FS.
_KNOWN = (0xEF53, 0x58465342, 0x9123683E, 0xF2F52010)


def cache_directory() -> Path:
    """Where boardfit keeps what it can always compute again: BOARDFIT_CACHE or the user's cache."""
    if own := os.environ.get("BOARDFIT_CACHE"):
        return Path(own).absolute()  # children have another current folder
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "boardfit"


def config_directory() -> Path:
    """Where boardfit keeps what cannot be computed again, keys above all."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "boardfit"


class VerifiedFiles:
    """A small persistent set of (file identity, sha256). Losing it costs time, never safety."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_directory() / "verified.json"
        self._known: dict[str, str] = {}
        try:
            stored: Any = json.loads(self._path.read_bytes())
            if isinstance(stored, dict):
                self._known = {k: v for k, v in stored.items() if isinstance(v, str)}
        except Exception:
            pass  # no cache yet, or a damaged one: everything is hashed again

    def is_known(self, file: OpenedFile, sha256: str) -> bool:
        return self._known.get(_key(file.identity)) == sha256

    def verify(self, file: OpenedFile, progress: Advance | None = None) -> str:
        """The sha256 of a file's content; remembered where a later edit would be noticed."""
        began_ns = time.time_ns()
        before = file.identity
        digest = file.digest(progress)
        newest_ns = max(before.mtime_ns, before.ctime_ns)
        is_settled = newest_ns < began_ns - SETTLED_NS and file.identity == before
        if is_settled and has_exact_ctime(file.fileno()):
            self._known.pop(_key(before), None)
            self._known[_key(before)] = digest
        return digest

    def save(self) -> None:
        """Store the newest entries; a read-only home is no error."""
        newest = dict(list(self._known.items())[-_MAX_ENTRIES:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(newest).encode(), mode=0o600)
        except OSError:
            pass


def _key(identity: FileIdentity) -> str:
    return ":".join(map(str, identity))


def has_exact_ctime(descriptor: int) -> bool:
    """Whether every edit of this open file is known to move its ctime."""
    if not sys.platform.startswith("linux"):
        return False
    status = (ctypes.c_long * 64)()  # larger than any struct statfs; f_type is its first word
    try:
        failed = ctypes.CDLL(None).fstatfs(descriptor, ctypes.byref(status))
    except (OSError, AttributeError):
        return False
    return not failed and (status[0] & 0xFFFFFFFF) in _KNOWN
