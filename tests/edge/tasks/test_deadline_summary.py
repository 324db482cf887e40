"""Counting what became of requests, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.bench.deadline_summary import by_task, summarize, wilson


def row(**changes: Any) -> dict[str, Any]:
    made = {
        "task": "translate", "n_given": 20, "n_answer": 50, "within_s": 2.0, "first_within_s": None,
        "accepted": True, "met": True, "total_s": 1.0, "first_s": 0.2, "n_out": 30,
        "n_possible": 80, "shortened": False, "whole_sentence": True, "adjustments": [],
    }  # fmt: skip
    return {**made, **changes}


REFUSED = {"task": "translate", "n_given": 9, "n_answer": 9, "within_s": 2.0,
           "first_within_s": None, "accepted": False, "why": "needs 3 s"}  # fmt: skip


@pytest.mark.parametrize(
    ("met", "n", "low", "high"),
    # Source: Brown, Cai, DasGupta 2001 and R's prop.test(correct = FALSE).
    [
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
        (95, 100, 0.8882, 0.9785),
        (1, 2, 0.0945, 0.9055),
    ],
)
def test_wilson_interval(met: int, n: int, low: float, high: float) -> None:
    assert wilson(met, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 0) is None


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share(pair: tuple[int, int]) -> None:
    met, n = pair
    interval = wilson(met, n)
    assert interval is not None
    assert 0 <= interval[0] <= met / n + 1e-12 and met / n - 1e-12 <= interval[1] <= 1


def test_a_summary_by_hand() -> None:
    rows = [
        row(),
        row(met=False, total_s=2.5, adjustments=["dropped", "selected"]),
        row(
            shortened=True, n_out=30, n_possible=40, whole_sentence=False, adjustments=["selected"]
        ),
        row(shortened=True, n_out=40, n_possible=90, n_answer=50),
        REFUSED,
    ]
    found = summarize(rows)
    assert (found["n_requests"], found["n_refused"], found["n_accepted"]) == (5, 1, 4)
    assert found["hit_rate"] == 0.75 and found["n_shortened"] == 2
    assert found["whole_sentence_share"] == 0.5
    # 30 + 30 + 30 + 40 given; the shortened ones could have had 40 and, asked for no more, 50.
    assert found["given_share"] == pytest.approx(130 / (30 + 30 + 40 + 50))
    assert found["worst_overrun_s"] == pytest.approx(0.5)
    assert found["worst_overrun_share"] == pytest.approx(0.25)
    assert found["total_s"]["maximum"] == 2.5 and found["first_s"]["p50"] == 0.2
    assert found["adjustments"] == {"dropped": 1, "selected": 2}


def test_refused_requests_that_were_asked_again() -> None:
    wrongly = {**REFUSED, "need_s": 1.9, "rightly": False}
    rightly = {**REFUSED, "need_s": 2.1, "rightly": True}
    found = summarize([rightly, rightly, wrongly, REFUSED])
    assert found["n_refused"] == 4 and found["refused_rightly_share"] == pytest.approx(2 / 3)
    assert summarize([REFUSED])["refused_rightly_share"] is None, "an old record asked nobody"


def test_what_was_not_counted_is_null_and_not_zero() -> None:
    found = summarize([REFUSED])
    assert found["hit_rate"] is None and found["hit_rate_low"] is None
    assert found["total_s"] is None and found["given_share"] is None
    missed = row(met=False, first_s=None, n_out=0, n_possible=None)
    assert summarize([missed])["first_s"] is None and summarize([missed])["hit_rate"] == 0.0


def test_tasks_apart() -> None:
    found = by_task([row(), row(task="assistant", met=False), row()])
    assert list(found) == ["translate", "assistant"]
    assert found["translate"]["hit_rate"] == 1.0 and found["assistant"]["n_met"] == 0
