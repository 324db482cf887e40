"""The KV state of a prefix in a file that an engine can map, and that is checked before it is used.

    [ state: the engine's own bytes ][ tokens: int32 each ][ footer: JSON ][ length u32 ][ magic ]

The state comes first so that a mapping of it is aligned. The footer holds what the state belongs to
(model, engine build, context, KV type), its sizes and an HMAC-SHA256 over all of it with a secret
of this user. Everything is checked before the library, which trusts its input, reads a byte.

States are renamed into place but not fsynced: they can always be computed again.
"""

import contextlib
import hashlib
import hmac
import json
import mmap
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.edge.disk.opened_file import OpenedFile, Source
from boardfit.edge.disk.secret import user_secret
from boardfit.edge.errors import DoesNotFitError, EngineError, InputError, IntegrityError
from boardfit.edge.files.kind import open_regular
from boardfit.edge.units import format_bytes

MAGIC = b"EDGEKV3\n"
PARTIAL = ".partial"
_TAIL = struct.Struct("<I8s")
_TOKEN_BYTES = 4
_MAX_FOOTER_BYTES = 64 * 1024
_CHUNK = 1 << 20
_SAMPLE_BYTES = 64 * 1024
_N_SAMPLES = 32


def fingerprint(path: Source, data_offset: int) -> str:
    """Identity of a model file: its sha256 where that was verified; else the sha256 of its size,
    its whole header and 32 samples of 64 KiB spread over its tensors.
    """
    if isinstance(path, OpenedFile) and path.sha256 is not None:
        return path.sha256
    digest = hashlib.sha256()
    file, size = open_regular(path)
    with file:
        digest.update(f"{size}:{data_offset}:".encode())
        left = data_offset
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
        span = max(0, size - data_offset - _SAMPLE_BYTES)
        for i in range(_N_SAMPLES):
            file.seek(data_offset + span * i // max(1, _N_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


# ---- writing ------------------------------------------------------------------------------------


def count_to_save(n_tokens: int | None, n_cached: int) -> int:
    """How many tokens `Engine.save_prefix` saves. Raises InputError if they are not there."""
    wanted = n_cached if n_tokens is None else n_tokens
    if not n_cached:
        raise InputError("there is nothing to save: the KV cache is empty")
    if not 0 < wanted <= n_cached:
        raise InputError(f"cannot save {wanted} tokens: the KV cache holds {n_cached}")
    return wanted


def write_state(
    path: Path,
    identity: Mapping[str, Any],
    tokens: Sequence[int],
    n_bytes: int,
    fill: Callable[[mmap.mmap], int],
    *,
    max_bytes: int | None = None,
) -> int:
    """Let `fill(mapping)` write a state of `n_bytes` for `tokens` straight into the file; add what
    makes it safe to read again and move it to `path`. Returns the file's bytes.

    Raises DoesNotFitError for more than `max_bytes` or a full disk, EngineError if `fill` writes
    another number of bytes, InputError if the folder cannot be written.
    """
    most_footer = len(json.dumps(dict(identity))) + 256
    whole = n_bytes + _TOKEN_BYTES * len(tokens) + most_footer
    if max_bytes is not None and whole > max_bytes:
        raise DoesNotFitError(
            f"a state of {len(tokens)} tokens takes {format_bytes(n_bytes)}, "
            f"{format_bytes(max_bytes)} are allowed",
            shortfall_bytes=whole - max_bytes,
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with _disk_errors(path):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, flags, 0o600)
        try:
            with os.fdopen(descriptor, "r+b") as file, _mapped_for_writing(file, n_bytes) as state:
                if fill(state) != n_bytes:
                    raise EngineError(f"the engine could not write its state to {path}")
                file.seek(n_bytes)
                file.write(struct.pack(f"<{len(tokens)}i", *tokens))
                file.flush()
                footer: dict[str, Any] = {
                    **identity, "n_tokens": len(tokens), "state_bytes": n_bytes,
                }  # fmt: skip
                footer["mac"] = _mac(file, n_bytes + _TOKEN_BYTES * len(tokens), footer)
                text = _text(footer)
                file.write(text + _TAIL.pack(len(text), MAGIC))
                size = file.tell()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return size


def remove_mac(path: Path) -> None:
    """Take this user's MAC from a state that goes into a bundle, whose manifest vouches for it."""
    header = read_state_header(path, 1 << 30)
    text = _text({key: value for key, value in header.footer.items() if key != "mac"})
    with path.open("r+b") as file:
        file.seek(header.state_bytes + _TOKEN_BYTES * len(header.tokens))
        file.truncate()
        file.write(text + _TAIL.pack(len(text), MAGIC))


@contextlib.contextmanager
def scratch(folder: Path, n_bytes: int) -> Iterator[mmap.mmap]:
    """A nameless mapped file in `folder`, of `n_bytes`. Raises DoesNotFitError for a full disk."""
    with (
        _disk_errors(folder),
        tempfile.TemporaryFile(dir=folder) as file,
        _mapped_for_writing(file, n_bytes) as mapping,
    ):
        yield mapping


@contextlib.contextmanager
def _mapped_for_writing(file: Any, n_bytes: int) -> Iterator[mmap.mmap]:
    # Blocks first: a mapped page that finds no room on the disk kills the process.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, n_bytes)
    else:
        for _ in range(0, n_bytes, _CHUNK):
            file.write(bytes(_CHUNK))
        file.flush()
        file.truncate(n_bytes)
    mapping = mmap.mmap(file.fileno(), n_bytes)
    try:
        yield mapping
    finally:
        _close(mapping)


def _close(mapping: mmap.mmap) -> None:
    """Unmap now, or with the last view of it."""
    with contextlib.suppress(BufferError):
        mapping.close()


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        import errno

        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise DoesNotFitError(f"no room for a state at {path}: {reason}") from None
        raise InputError(f"no state can be written at {path}: {reason}") from None


# ---- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateHeader:
    """What a state file says of itself: sizes are checked, the MAC is not."""

    tokens: tuple[int, ...]
    state_bytes: int
    file_bytes: int
    footer: Mapping[str, Any]


def read_state_header(path: Source, max_tokens: int) -> StateHeader:
    """Raises InputError if it is no state file, IntegrityError if its sizes do not add up."""
    file, size = open_regular(path)
    with file:
        return _read_header(file, size, path, max_tokens)


@contextlib.contextmanager
def mapped_state(
    path: Source, identity: Mapping[str, Any], n_ctx: int
) -> Iterator[tuple[list[int], mmap.mmap]]:
    """Check everything about a state file; then its tokens, and its state as a private mapping:
    writing to it changes a copy. A bundle's file was verified with it, and has no MAC.

    Raises InputError if it is no state file, IntegrityError if it is damaged, was not made by this
    user, or belongs to another model, engine build, context or KV type.
    """
    file, size = open_regular(path)
    with file:
        is_verified = isinstance(path, OpenedFile) and path.sha256 is not None
        if not is_verified:
            check_private(Path(path), os.fstat(file.fileno()))
        header = _read_header(file, size, path, n_ctx)
        for key, expected in identity.items():
            if header.footer.get(key) != expected:
                raise IntegrityError(
                    f"{path}: saved with {key} {header.footer.get(key)!r:.80}, "
                    f"this engine has {expected!r:.80}",
                    next_step="the conversation itself can be replayed without the saved state",
                )
        rest = {key: value for key, value in header.footer.items() if key != "mac"}
        # Read, not mapped: what a failing card gives back here is an error, not a dead process.
        file.seek(0)
        n_hashed = header.state_bytes + _TOKEN_BYTES * len(header.tokens)
        try:
            stored_mac = str(header.footer.get("mac")).encode("utf-8", "replace")
            matches = is_verified or hmac.compare_digest(
                _mac(file, n_hashed, rest).encode(), stored_mac
            )
            mapping = mmap.mmap(file.fileno(), header.state_bytes, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise IntegrityError(f"{path}: cannot be read: {error}") from None
        if not matches:
            raise IntegrityError(
                f"{path}: its hmac-sha256 does not match: it was not saved by this user, or it was "
                "edited or damaged"
            )
        try:
            yield list(header.tokens), mapping
        finally:
            _close(mapping)


def _read_header(file: Any, size: int, path: Source, max_tokens: int) -> StateHeader:
    try:
        file.seek(max(0, size - _TAIL.size))
        tail = file.read(_TAIL.size)
        if len(tail) != _TAIL.size or tail[-len(MAGIC) :] != MAGIC:
            raise InputError(f"{path}: not a saved state of this boardfit, or cut short")
        length, _ = _TAIL.unpack(tail)
        end = size - _TAIL.size - length
        if length > _MAX_FOOTER_BYTES or end <= 0:
            raise IntegrityError(f"{path}: its footer claims {length} bytes")
        file.seek(end)
        text = file.read(length)
        try:
            footer = json.loads(text)
        except (ValueError, RecursionError):
            footer = None
        # The MAC covers the canonical JSON of the footer.
        if not isinstance(footer, dict) or _text(footer) != text:
            raise IntegrityError(f"{path}: its footer is damaged")
        n_tokens, state_bytes = footer.get("n_tokens"), footer.get("state_bytes")
        if type(n_tokens) is not int or not 0 < n_tokens <= max_tokens:
            raise IntegrityError(
                f"{path}: says {n_tokens!r:.40} tokens, the context holds {max_tokens}"
            )
        held = end - _TOKEN_BYTES * n_tokens
        if type(state_bytes) is not int or held <= 0 or state_bytes != held:
            raise IntegrityError(f"{path}: says {state_bytes!r:.40} bytes of state, holds {held}")
        file.seek(state_bytes)
        tokens = struct.unpack(f"<{n_tokens}i", file.read(_TOKEN_BYTES * n_tokens))
    except (OSError, struct.error) as error:
        raise IntegrityError(f"{path}: cannot be read: {error}") from None
    return StateHeader(tokens, state_bytes, size, footer)


def check_private(path: Path, status: os.stat_result) -> None:
    """Raise IntegrityError unless only we, or root, can have written what has this status."""
    if os.name != "posix":
        return
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise IntegrityError(
            f"{path} may have been written by another user "
            f"(uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o})"
        )


def _text(footer: Mapping[str, Any]) -> bytes:
    return json.dumps(footer, sort_keys=True).encode()


def _mac(file: Any, n_bytes: int, footer: Mapping[str, Any]) -> str:
    """In hex, over the first `n_bytes` of `file`, which it is left behind, and over the footer."""
    text = _text(footer)
    digest = hmac.new(user_secret(), digestmod="sha256")
    digest.update(MAGIC + struct.pack("<IQ", len(text), n_bytes) + text)
    file.seek(0)
    buffer = memoryview(bytearray(min(_CHUNK, n_bytes)))
    left = n_bytes
    while left > 0:
        n = file.readinto(buffer[: min(left, len(buffer))])
        if not n:
            break
        digest.update(buffer[:n])
        left -= n
    return digest.hexdigest()
