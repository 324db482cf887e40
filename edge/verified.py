"""Which files were hashed before and have not changed since, so that a 4 GB model on an SD card is
read once and not before every answer.

A file counts as unchanged while device, inode, size, mtime and ctime are the same: editing a byte
moves ctime, which no ordinary program can set back.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from edge.atomic import write_atomic

_MAX_ENTRIES = 512


def cache_directory() -> Path:
    """Where edgekit keeps what it can always compute again: EDGEKIT_CACHE or the user's cache."""
    if own := os.environ.get("EDGEKIT_CACHE"):
        return Path(own).absolute()  # children have another current folder
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "edgekit"


def config_directory() -> Path:
    """Where edgekit keeps what cannot be computed again, keys above all."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgekit"


class VerifiedFiles:
    """A small persistent set of (file identity, sha256). Losing it costs time, never safety."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or cache_directory() / "verified.json"
        self._known: dict[str, str] = {}
        try:
            stored: Any = json.loads(self._path.read_bytes())
            if isinstance(stored, dict):
                self._known = {k: v for k, v in stored.items() if isinstance(v, str)}
        except (OSError, ValueError):
            pass  # no cache yet, or a damaged one: everything is hashed again

    @staticmethod
    def _identity(path: Path) -> str:
        s = path.stat()
        return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"

    def knows(self, path: Path, sha256: str) -> bool:
        return self._known.get(self._identity(path)) == sha256

    def add(self, path: Path, sha256: str) -> None:
        self._known.pop(self._identity(path), None)
        self._known[self._identity(path)] = sha256

    def save(self) -> None:
        """Store the newest entries; a read-only home is no error."""
        newest = dict(list(self._known.items())[-_MAX_ENTRIES:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(newest).encode(), mode=0o600)
        except OSError:
            pass
