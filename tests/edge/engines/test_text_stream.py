"""Text from token bytes: whole characters, stop strings held back, nothing lost or invented."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.engines.generation import TextStream


def feed(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(stop)
    shown = []
    for piece in pieces:
        shown.append(stream.push(piece))
        if stream.stopped:
            break
    shown.append(stream.flush())
    return shown, stream.stopped


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    text = draw(st.text("ab<|>é😀", max_size=30))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=8)))
    edges = [0, *cuts, len(data)]
    return text, [data[a:b] for a, b in itertools.pairwise(edges)]


@given(cut_texts(), st.lists(st.text("ab<|>é😀", min_size=1, max_size=4), max_size=3))
def test_equals_cutting_the_whole_text(cut: tuple[str, list[bytes]], stops: list[str]) -> None:
    text, pieces = cut
    shown, stopped = feed(pieces, tuple(stops))
    found = [at for at in (text.find(s) for s in stops) if at >= 0]
    assert stopped == bool(found)
    assert "".join(shown) == (text[: first_end(text, stops)] if found else text)


def first_end(text: str, stops: list[str]) -> int:
    """Where the answer ends: at the stop string that is complete first, read left to right; of
    several that end together, the longest.
    """
    for end in range(len(text) + 1):
        begins = [end - len(s) for s in stops if text[:end].endswith(s)]
        if begins:
            return min(begins)
    raise AssertionError("no stop string")


@given(st.binary(max_size=40))
def test_any_bytes_decode_as_in_one_piece(data: bytes) -> None:
    shown, _ = feed([bytes([b]) for b in data])
    assert "".join(shown) == data.decode("utf-8", "replace")


def test_nothing_is_held_without_need() -> None:
    stream = TextStream(("STOP",))
    assert stream.push(b"an S") == "an "
    assert stream.push(b"T") == ""
    assert stream.push(b"ar") == "STar"
    assert stream.push(b"STOP, more") == "" and stream.stopped
    assert stream.flush() == ""
