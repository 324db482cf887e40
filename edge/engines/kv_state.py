"""The KV state of a prefix in a file: the library's own format, with a footer that binds it.

    [ state as llama_state_seq_save_file writes it ][ footer: JSON ][ length u32 ][ magic 8 bytes ]

The footer holds the sha256 of the state and what it belongs to (model, engine build, context, KV
type). All of it is checked before the library reads a byte, because the library's reader trusts
its input. The hash finds damage and mix-ups; against somebody who writes a footer of his own it
does not help: take states only from where you would take a program (a verified bundle, yourself).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.atomic import fsync_directory
from edge.errors import EngineError, InputError, IntegrityError
from edge.filekind import open_regular

MAGIC = b"EDGEKV1\n"
_TAIL = struct.Struct("<I8s")
_MAX_FOOTER_BYTES = 64 * 1024
_CHUNK = 1 << 20
_SAMPLE_BYTES = 64 * 1024
_N_SAMPLES = 32


def fingerprint(path: Path, data_offset: int) -> str:
    """Identity of a model file without reading all of it: sha256 of its size, its whole header and
    32 samples of 64 KiB spread over its tensors. Two quantizations never share one.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
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


def write_state(
    path: Path, identity: Mapping[str, Any], n_tokens: int, save: Callable[[bytes], int]
) -> int:
    """Let `save(file name)` write the state beside `path`, add the footer, move it into place.

    Returns the bytes written. Raises EngineError if `save` reports 0 bytes.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if save(os.fsencode(partial)) == 0:
            raise EngineError(f"the engine could not write its state to {path}")
        footer = {**identity, "n_tokens": n_tokens, "sha256": _sha256(partial)}
        text = json.dumps(footer, sort_keys=True).encode()
        with partial.open("ab") as file:
            file.write(text + _TAIL.pack(len(text), MAGIC))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    fsync_directory(path.parent)
    return size


def check_state(path: Path, identity: Mapping[str, Any], n_ctx: int) -> int:
    """Check everything about a state file; returns its number of tokens.

    Raises InputError if it is no state file, IntegrityError if it is damaged or belongs to another
    model, engine build, context or KV type.
    """
    footer, state_bytes = _read_footer(path)
    for key, expected in identity.items():
        if footer.get(key) != expected:
            raise IntegrityError(
                f"{path}: saved with {key} {footer.get(key)!r:.80}, "
                f"this engine has {expected!r:.80}",
                next_step="the conversation itself can be replayed without the saved state",
            )
    n_tokens = footer.get("n_tokens")
    if not isinstance(n_tokens, int) or not 0 < n_tokens <= n_ctx:
        raise IntegrityError(f"{path}: says {n_tokens!r:.40} tokens, the context holds {n_ctx}")
    if _sha256(path, state_bytes) != footer.get("sha256"):
        raise IntegrityError(f"{path}: its sha256 does not match: it was edited or damaged")
    return n_tokens


def _read_footer(path: Path) -> tuple[dict[str, Any], int]:
    file, size = open_regular(path)
    with file:
        file.seek(max(0, size - _TAIL.size))
        tail = file.read()
        if len(tail) != _TAIL.size or tail[-len(MAGIC) :] != MAGIC:
            raise InputError(f"{path}: not a saved state of edgekit, or cut short")
        length, _ = _TAIL.unpack(tail)
        state_bytes = size - _TAIL.size - length
        if length > _MAX_FOOTER_BYTES or state_bytes <= 0:
            raise IntegrityError(f"{path}: its footer claims {length} bytes")
        file.seek(state_bytes)
        try:
            footer = json.loads(file.read(length))
        except ValueError:
            footer = None
    if not isinstance(footer, dict):
        raise IntegrityError(f"{path}: its footer is damaged")
    return footer, state_bytes


def _sha256(path: Path, n_bytes: int | None = None) -> str:
    digest = hashlib.sha256()
    left = path.stat().st_size if n_bytes is None else n_bytes
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
