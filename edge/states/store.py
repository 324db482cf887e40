"""KV states that were computed before, in a folder: found by their tokens, bounded, oldest out.

    NAME-<model, engine, context: 16 hex>-<tokens: 16 hex>.kv     see boardfit.edge.engines.kv_state

Its mtime is its last use. Any failure with a state costs the time to compute it again and one line,
never an answer. Two processes may share a folder: files are written beside and renamed, and
half-written files of dead processes are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.disk.rooted import Root
from boardfit.edge.disk.secret import user_secret
from boardfit.edge.engines.kv_state import PARTIAL, check_private, read_state_header
from boardfit.edge.engines.prefix_cache import common
from boardfit.edge.errors import EdgeError, IntegrityError, UnsafeInputError
from boardfit.edge.types import Engine, Message

SUFFIX = ".kv"
#: A folder holds at most this many bytes of states, and at most this share of the disk's free
#: space.
DEFAULT_LIMIT_BYTES = 256 * 1024**2
_DISK_SHARE = 0.1
_MAX_FILES = 256
#: No context is longer.
MAX_TOKENS = 1 << 20
#: Restoring must save at least this many tokens over what the engine holds already.
MIN_GAIN = 16
#: What storage is taken to read at until a restore was measured.
_READ_BYTES_PER_S = 80e6
#: Fewer tokens, or fewer seconds to compute them, are not worth a file.
MIN_TOKENS = 32
MIN_COMPUTE_S = 0.02
# First characters that tokenizers merge with what stands before them, or do not.
_PROBES = ("a", "The", "\n")
#: Says whose a folder is.
_OWNER = ".owner"
_MAX_MARK_BYTES = 1024
_PID = re.compile(r"\.(\d+)\.partial$")


@dataclass(frozen=True)
class StoredState:
    """One stored state. `used_s` is the time of its last use (seconds since the epoch)."""

    path: Path
    n_bytes: int
    used_s: float

    @property
    def label(self) -> str:
        """The model's name, as far as a file name can hold it."""
        return self.path.name.rsplit("-", 2)[0]


@dataclass(frozen=True)
class Restored:
    """What a look into the store came to: `n_tokens` more are in the KV cache, read in `seconds`
    from a state of `state` tokens; `problems` are sentences about unusable states.
    """

    n_tokens: int = 0
    seconds: float = 0.0
    state: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()

    def __add__(self, later: Restored) -> Restored:
        return Restored(
            self.n_tokens + later.n_tokens,
            self.seconds + later.seconds,
            later.state or self.state,
            self.problems + later.problems,
        )


@dataclass
class StateStore:
    """The states of one opened model, in a folder that those of other models may share.

    `identity` is plain data, equal only where a state may be used; the engine checks again.
    `limit_bytes` bounds all states in the folder, `read_bytes_per_s` was measured last. `claims`:
    the folder is used only with our marker in it. `shipped` are states of the model's bundle:
    verified with it, used and left there.
    """

    folder: Path
    name: str
    identity: Mapping[str, Any]
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    read_bytes_per_s: float = _READ_BYTES_PER_S
    claims: bool = False
    shipped: Sequence[OpenedFile] = ()
    _known: dict[Path, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(json.dumps(dict(self.identity), sort_keys=True).encode())
        self._prefix = f"{file_label(self.name)}-{digest.hexdigest()[:16]}-"
        self.refresh()

    # ---- finding --------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look again at what is there, this model's states alone."""
        self._known = {}
        for file in self.shipped:
            with contextlib.suppress(EdgeError):
                self._known[file.path] = read_state_header(file, MAX_TOKENS).tokens
        with contextlib.suppress(IntegrityError):
            check_owner(self.folder)
            if self.claims and not is_claimed(self.folder):
                return
            for entry in entries(self.folder):
                if entry.path.name.startswith(self._prefix) and entry.n_bytes <= self.limit_bytes:
                    with contextlib.suppress(EdgeError):
                        self._known[entry.path] = read_state_header(entry.path, MAX_TOKENS).tokens

    def state_path(self, tokens: Sequence[int]) -> Path:
        """Where a state of exactly these tokens lies."""
        data = struct.pack(f"<{len(tokens)}i", *tokens)
        return self.folder / f"{self._prefix}{hashlib.sha256(data).hexdigest()[:16]}{SUFFIX}"

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether there is a state of exactly these tokens."""
        return self.state_path(tokens) in self._known or tuple(tokens) in self._known.values()

    def best(self, tokens: Sequence[int], have: int = 0) -> tuple[Path, int] | None:
        """The state that shares the most leading tokens with `tokens`, and how many; None if none
        shares MIN_GAIN more than `have`.
        """
        # The last token of a prompt is evaluated again in any case: its logits are needed.
        found = [(common(state, tokens[:-1]), path) for path, state in self._known.items()]
        n_common, path = max(found, default=(0, Path()))
        return (path, n_common) if n_common >= have + MIN_GAIN else None

    def predict_s(self, path: Path) -> float:
        """Seconds that restoring a state is expected to take."""
        try:
            return path.stat().st_size / self.read_bytes_per_s
        except OSError:
            return 0.0

    # ---- restoring ------------------------------------------------------------------------------

    def restore(
        self, engine: Engine, tokens: Sequence[int], compute_s: Callable[[int], float] | None = None
    ) -> Restored:
        """Put the best state for a prompt of `tokens` into the engine, if it holds clearly more of
        them; with `compute_s`, only if computing them would take twice as long. Unusable states are
        deleted and reported.
        """
        problems: list[str] = []
        began_s = time.monotonic()
        have = engine.reusable(tokens)
        while (found := self.best(tokens, have)) is not None:
            path, n_common = found
            if compute_s is not None and compute_s(n_common - have) < 2 * self.predict_s(path):
                break
            n_bytes, read_s = path_size(path), time.monotonic()
            shipped = next((file for file in self.shipped if file.path == path), None)
            try:
                if shipped is None:
                    check_owner(path)
                engine.restore_prefix(shipped or path)
            except EdgeError as error:
                self._known.pop(path, None)
                if shipped is not None:
                    problems.append(f"a state of the bundle was not used: {error}")
                elif n_bytes is not None:  # None: another process has removed it
                    problems.append(f"a saved state was not used: {error}")
                    if not isinstance(error, UnsafeInputError):  # the secret's fault, not its own
                        _remove_own(path)
                continue
            now_s = time.monotonic()
            if n_bytes is not None and now_s > read_s:
                self.read_bytes_per_s = n_bytes / (now_s - read_s)
            if shipped is None:
                with contextlib.suppress(OSError):
                    os.utime(path, follow_symlinks=False)
            gain = engine.reusable(tokens) - have
            if gain <= 0:  # a memory that cannot be cut to what is shared
                self._known.pop(path, None)
                have = max(0, engine.reusable(tokens))
                continue
            return Restored(gain, now_s - began_s, self._known[path], tuple(problems))
        return Restored(0, time.monotonic() - began_s, (), tuple(problems))

    # ---- storing --------------------------------------------------------------------------------

    def save(self, engine: Engine, tokens: Sequence[int]) -> Path | None:
        """Store the state of `tokens`, which the engine's cache must begin with. None where that
        cannot be, or was found not to pay.
        """
        path = self.state_path(tokens)
        if path_size(path) == 0 or not self.limit_bytes:
            return None
        limit = self.room_bytes()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_owner(self.folder)
            if self.claims:
                claim(self.folder)
            sweep(self.folder)
            engine.save_prefix(path, len(tokens), max_bytes=limit)
            if read_state_header(path, MAX_TOKENS).tokens != tuple(tokens):
                _remove(path)  # another conversation came between
                return None
        except (EdgeError, OSError):
            return None
        self._known[path] = tuple(tokens)
        for gone in evict(self.folder, limit, keep=path):
            self._known.pop(gone, None)
        return path

    def drop(self, tokens: Sequence[int], *, for_good: bool = False) -> None:
        """Remove the state of exactly these tokens; `for_good`: an empty file keeps it out."""
        path = self.state_path(tokens)
        self._known.pop(path, None)
        if _remove(path) and for_good:
            with contextlib.suppress(OSError):
                path.touch(0o600)

    def room_bytes(self) -> int:
        """What all states in the folder may take together now."""
        folder = self.folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            return self.limit_bytes
        held = sum(entry.n_bytes for entry in entries(self.folder))
        return min(self.limit_bytes, int(_DISK_SHARE * (free + held)))


# ---- what is worth a state ----------------------------------------------------------------------


def system_prefix(
    render: Callable[[list[Message]], Sequence[int]], system: str | None
) -> list[int]:
    """The tokens that begin every conversation with `system`. Raises what `render` raises."""
    shared: Sequence[int] | None = None
    before = [Message("system", system)] if system else []
    for text in _PROBES:
        tokens = render([*before, Message("user", text)])
        shared = tokens if shared is None else shared[: common(shared, tokens)]
    return list(shared or ())


def is_worth_storing(n_tokens: int, compute_s: float, restore_s: float) -> bool:
    """Whether a state of `n_tokens` that took `compute_s` should be kept, if it is restored in
    `restore_s`: it should win clearly, for storage may be slower than it was when last measured.
    """
    return n_tokens >= MIN_TOKENS and compute_s >= max(MIN_COMPUTE_S, 1.5 * restore_s)


# ---- a folder of states --------------------------------------------------------------------------


def entries(folder: Path) -> list[StoredState]:
    """The states in a folder, regular files alone, the latest used first. None if it is missing."""
    found = []
    for name, status in _files(folder):
        if name.endswith(SUFFIX) and not name.startswith("."):
            found.append(StoredState(folder / name, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: (-entry.used_s, entry.path.name))


def evict(folder: Path, limit_bytes: int, *, keep: Path | None = None) -> list[Path]:
    """Remove the states used longest ago until the limits hold; `keep` stays. Returns which."""
    stored = entries(folder)
    gone, total, count = [], sum(entry.n_bytes for entry in stored), len(stored)
    for entry in reversed(stored):
        if total <= limit_bytes and count <= _MAX_FILES:
            break
        if entry.path != keep and _remove(entry.path):
            gone.append(entry.path)
            total, count = total - entry.n_bytes, count - 1
    return gone


def sweep(folder: Path) -> None:
    """Delete half-written files of dead processes."""
    for name, status in _files(folder):
        match = _PID.search(name)
        # A pid comes again one day, and a folder may be on two boards' share.
        dead = match is not None and not psutil.pid_exists(int(match[1][:9]))
        if name.endswith(PARTIAL) and (dead or time.time() - status.st_mtime > 3600):
            _remove(folder / name)


def clear(folder: Path) -> int:
    """Remove every state; returns the bytes freed."""
    sweep(folder)
    return sum(entry.n_bytes for entry in entries(folder) if _remove(entry.path))


def check_owner(path: Path) -> None:
    """Raise IntegrityError unless only we, or root, can have written `path`, which is no link."""
    try:
        status = path.lstat()
    except OSError as error:
        raise IntegrityError(f"{path}: {error.strerror}") from None
    check_private(path, status)


def claim(folder: Path) -> None:
    """Mark an empty folder as this user's. Raises IntegrityError for a folder of another owner,
    EdgeError or OSError when that cannot be determined.
    """
    with Root(folder.parent) as root:
        if root.entries(folder.name):
            if not is_claimed(folder):
                raise IntegrityError(f"{folder} was not made by this user")
            return
        root.write(f"{folder.name}/{_OWNER}", _owner_mark(), 0o600)


def is_claimed(folder: Path) -> bool:
    """Whether a folder of states has the mark of this user on this machine."""
    try:
        with Root(folder.parent) as root, root.open(f"{folder.name}/{_OWNER}") as file:
            return hmac.compare_digest(file.read(_MAX_MARK_BYTES), _owner_mark())
    except (EdgeError, OSError):
        return False


def _owner_mark() -> bytes:
    return hmac.new(user_secret(), b"boardfit: a folder of states", "sha256").hexdigest().encode()


def file_label(name: str) -> str:
    """`name` as the first part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:40] or "model"


def path_size(path: Path) -> int | None:
    """Bytes of a file; None if it is not there."""
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Names and status of the regular files in a folder."""
    try:
        with os.scandir(folder) as found:
            for item in found:
                with contextlib.suppress(OSError):
                    status = item.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield item.name, status
    except OSError:
        return


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _remove_own(path: Path) -> None:
    """Remove a file that belongs to this user."""
    with contextlib.suppress(OSError):
        if os.name != "posix" or path.lstat().st_uid == os.geteuid():
            path.unlink()
