"""Extend a saved sequence to n tokens without computing n tokens.

Memory does not depend on what a cache holds, only on how many of its cells are used. The engine
saves a sequence of a few computed tokens, its rows are repeated here, and the engine loads the
result: every page of the cache is then written, and what is computed behind attends to all of it.

Layout: src/llama-context.cpp (state_seq_save_file), src/llama-kv-cache.cpp (state_write, with fused
attention: V is not transposed), src/llama-memory-recurrent.cpp (state_write).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Literal

#: A cache of the whole context, one of a sliding window, or the states of recurrent layers.
CachePart = Literal["full", "window", "states"]


def lengthen_state(
    path: Path, out: Path, parts: tuple[CachePart, ...], n_tokens: int, n_window: int = 0
) -> None:
    """Write the sequence in `path` to `out` as one of `n_tokens`. `parts` are the caches in the
    order that the engine writes them; one of a sliding window keeps the last `n_window` tokens.

    Raises ValueError if the file is not laid out as expected.
    """
    with path.open("rb") as source, out.open("wb") as target:
        magic, version, n_saved = struct.unpack("<3I", source.read(12))
        tokens = source.read(4 * n_saved)
        target.write(struct.pack("<3I", magic, version, n_tokens))
        target.write(_repeated(tokens, 4, n_tokens))
        for part in parts:
            if part == "states":
                _copy_states(source, target, n_tokens)
            else:
                n_cells = min(n_tokens, n_window) if part == "window" else n_tokens
                _lengthen_cache(source, target, n_tokens, n_cells)
        if source.read(1):
            raise ValueError(f"{path}: more in it than {' and '.join(parts)}")


def _lengthen_cache(source: BinaryIO, target: BinaryIO, n_tokens: int, n_cells: int) -> None:
    n_streams, n_saved = struct.unpack("<2I", source.read(8))
    cells = [struct.unpack("<iIi", source.read(12)) for _ in range(n_saved)]
    v_transposed, n_layers = struct.unpack("<2I", source.read(8))
    if n_streams != 1 or v_transposed or any(cell[1] != 1 for cell in cells):
        raise ValueError("not a cache of one sequence with rows of V as they are")
    target.write(struct.pack("<2I", 1, n_cells))
    for position in range(n_tokens - n_cells, n_tokens):
        target.write(struct.pack("<iIi", position, 1, 0))
    target.write(struct.pack("<2I", 0, n_layers))
    for _ in range(2 * n_layers):  # K of every layer, then V of every layer
        head = source.read(12)
        _, row = struct.unpack("<iQ", head)
        target.write(head)
        target.write(_repeated(source.read(row * n_saved), row, n_cells))


def _copy_states(source: BinaryIO, target: BinaryIO, n_tokens: int) -> None:
    """States are of the last token, whose position is all that changes."""
    n_cells, _ = struct.unpack("<Ii", source.read(8))
    if n_cells != 1:
        raise ValueError(f"states of {n_cells} sequences, expected one")
    target.write(struct.pack("<Ii", 1, n_tokens - 1))
    target.write(source.read())


def _repeated(rows: bytes, size: int, n: int) -> bytes:
    """The first `n` rows of the rows repeated endlessly."""
    if not rows or len(rows) % size:
        raise ValueError("the file ends early")
    return (rows * (-(-n * size // len(rows))))[: n * size]
