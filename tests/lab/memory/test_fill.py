"""Saved sequences made longer: laid out as the engine does, and refused where they are not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lab.memory.fill import lengthen_state

ROW = 8


def cache(n_cells: int, n_layers: int = 2, *, transposed: int = 0) -> bytes:
    """A cache as src/llama-kv-cache.cpp writes one: row i of every layer is filled with i."""
    out = struct.pack("<2I", 1, n_cells)
    out += b"".join(struct.pack("<iIi", i, 1, 0) for i in range(n_cells))
    out += struct.pack("<2I", transposed, n_layers)
    rows = b"".join(bytes([i]) * ROW for i in range(n_cells))
    return out + 2 * n_layers * (struct.pack("<iQ", 1, ROW) + rows)


def sequence(n_tokens: int, *parts: bytes) -> bytes:
    tokens = struct.pack(f"<{n_tokens}i", *range(n_tokens))
    return struct.pack("<3I", 0x67677371, 2, n_tokens) + tokens + b"".join(parts)


def lengthen(folder: Path, data: bytes, *arguments: object) -> bytes:
    (folder / "short").write_bytes(data)
    lengthen_state(folder / "short", folder / "long", *arguments)  # type: ignore[arg-type]
    return (folder / "long").read_bytes()


def test_rows_repeat_and_positions_go_on(tmp_path: Path) -> None:
    found = lengthen(tmp_path, sequence(3, cache(3)), ("full",), 7)
    assert struct.unpack("<3I", found[:12]) == (0x67677371, 2, 7)
    body = found[12 + 4 * 7 :]
    assert struct.unpack("<2I", body[:8]) == (1, 7)
    cells = struct.unpack("<" + "iIi" * 7, body[8 : 8 + 12 * 7])
    assert cells[::3] == tuple(range(7)) and set(cells[1::3]) == {1}
    layer = body[8 + 12 * 7 + 8 :][12 : 12 + 7 * ROW]
    assert layer[::ROW] == bytes([0, 1, 2, 0, 1, 2, 0])
    assert len(body) == 8 + 12 * 7 + 8 + 4 * (12 + 7 * ROW)


def test_a_window_keeps_the_last_tokens_and_states_the_last_position(tmp_path: Path) -> None:
    data = sequence(3, cache(3), cache(3))
    found = lengthen(tmp_path, data, ("full", "window"), 9, 4)
    window = found[-(8 + 12 * 4 + 8 + 4 * (12 + 4 * ROW)) :]
    assert struct.unpack("<2I", window[:8]) == (1, 4)
    assert struct.unpack("<" + "iIi" * 4, window[8:56])[::3] == (5, 6, 7, 8)
    data = sequence(3, cache(3), struct.pack("<IiI", 1, 2, 0), b"state")
    found = lengthen(tmp_path, data, ("full", "states"), 9)
    assert found.endswith(struct.pack("<IiI", 1, 8, 0) + b"state")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (sequence(3, cache(3, transposed=1)), "rows of V"),
        (sequence(3, cache(3), b"more"), "more in it"),
        (sequence(3, cache(3))[:-5], "ends early"),
        (sequence(3, cache(3)).replace(struct.pack("<iIi", 1, 1, 0), bytes(12)), "one sequence"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengthen(tmp_path, data, ("full",), 7)
