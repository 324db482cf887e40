"""Where sentences end, what is held back at the end of an answer, what is left out of a message."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.deadline.shorten import ELLIPSIS, select, split
from boardfit.edge.deadline.soft_end import SentenceHold, is_whole, sentence_ends


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ("Version 1.2 of it. Done.", ["Version 1.2 of it.", " Done."]),
        ("See e.g. Dr. Who. Then", ["See e.g. Dr. Who."]),
        ('He said "no." Then left.', ['He said "no."', " Then left."]),
        ("1. first\n2. second.", ["1. first\n2. second."]),
        ("泵在三号房间。它坏了！", ["泵在三号房间。", "它坏了！"]),
        ("no end", []),
        ("A line\n\nAnother", ["A line"]),
        ("It has 3. Next", ["It has 3."]),
    ],
)
def test_sentences_end_where_a_reader_would_say(text: str, sentences: list[str]) -> None:
    starts = [0, *sentence_ends(text)]
    found = [text[a:b] for a, b in pairwise(starts)]
    assert found == sentences


@pytest.mark.parametrize(
    ("text", "whole"),
    [("Yes.", True), ("Yes", False), ('{"do":"x"}', True), ('{"do":{"x"}', False), ("", False)],
)
def test_is_whole(text: str, whole: bool) -> None:
    assert is_whole(text) is whole


@given(st.lists(st.sampled_from(["One. ", "two", " three. ", "Fo", "ur", "! ", " "]), max_size=30))
def test_holding_back_loses_and_adds_nothing(pieces: list[str]) -> None:
    text = "".join(pieces)
    hold = SentenceHold()
    out = ""
    for i, piece in enumerate(pieces):
        if i == len(pieces) // 2:
            hold.close()
        out += hold.push(piece)
        assert text.startswith(out)
    assert out + hold.rest(drop=False) == text


def test_an_answer_cut_for_time_shows_whole_sentences() -> None:
    hold = SentenceHold()
    out = hold.push("First. Second is und")
    hold.close()
    out += hold.push("er way. Third be")
    out += hold.push("gins")
    assert out + hold.rest(drop=True) == "First. Second is under way."


FACTS = [
    f"Pump {i} stands in room {100 + i}. Its oil was changed in {1990 + i}." for i in range(30)
]
MANUAL = " ".join(FACTS)


@pytest.mark.parametrize(
    "message",
    [f"{MANUAL}\n\nIn which room is pump 17?", f"In which room is pump 17?\n\n{MANUAL}"],
)
def test_the_question_and_what_bears_on_it_stay(message: str) -> None:
    pieces = split(message)
    assert "".join(piece.text for piece in pieces) == message
    sizes = [len(piece.text.split()) for piece in pieces]
    short = select(pieces, sizes, 40)
    assert short is not None and len(short.split()) <= 60
    assert "In which room is pump 17?" in short and "room 117" in short and ELLIPSIS in short


@given(st.text(max_size=400), st.integers(0, 80))
def test_any_text_is_split_without_loss_and_selected_in_order(text: str, budget: int) -> None:
    pieces = split(text)
    assert "".join(piece.text for piece in pieces) == text
    sizes = [len(piece.text) for piece in pieces]
    short = select(pieces, sizes, budget)
    if short is None:
        return
    at = 0
    for part in short.split(ELLIPSIS):
        at = text.index(part.strip(), at) if ELLIPSIS not in text else at
