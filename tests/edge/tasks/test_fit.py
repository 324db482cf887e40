"""A text longer than the context keeps its question and what bears on it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.tasks.use import fit_message

FACTS = [
    f"Pump {i} stands in room {100 + i}. Its oil was changed in {1990 + i}." for i in range(40)
]
MESSAGE = " ".join(FACTS) + "\n\nQuestion: In which room is pump 17?"


def count(text: str) -> int:
    return len(text.split())


def n_prompt(message: str) -> int:
    return 12 + count(message)


@given(st.integers(30, 800))
def test_it_fits_and_keeps_what_is_asked(room: int) -> None:
    message, note = fit_message(MESSAGE, n_prompt, count, room)
    if n_prompt(MESSAGE) <= room:
        assert (message, note) == (MESSAGE, None)
        return
    assert note is not None and "longer than the context" in note
    assert n_prompt(message) <= room and "In which room is pump 17?" in message
    if room > 60:
        assert "room 117" in message


def test_what_cannot_be_shortened_is_left_for_the_engine_to_refuse() -> None:
    question = "Why " + "very " * 200 + "late?"
    assert fit_message(question, n_prompt, count, 40) == (question, None)
