"""When answers end that are computed together."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.serve.schedule import JoinGate, WorkLeft, simulate

_WORKS = st.lists(
    st.tuples(st.floats(0.01, 3), st.floats(0, 3), st.floats(0, 1)), min_size=1, max_size=6
)


def made(rows: list[tuple[float, float, float]]) -> list[WorkLeft]:
    return [WorkLeft(needs, needs + more, needs * share) for needs, more, share in rows]


@given(_WORKS)
def test_one_slot_is_one_after_another(rows: list[tuple[float, float, float]]) -> None:
    works = made(rows)
    now_s = 0.0
    ended_s = simulate([], works, 1, float)
    for work, (needs_s, more_s, _) in zip(works, rows, strict=True):
        assert abs(work.begun_s - now_s) < 1e-6 and abs(work.reached_s - now_s - needs_s) < 1e-6
        now_s += needs_s + more_s
    assert abs(ended_s - now_s) < 1e-6


@given(_WORKS, st.integers(2, 4), st.floats(0.1, 1.0))
def test_sharing_that_gains_ends_no_later(
    rows: list[tuple[float, float, float]], n_slots: int, cost: float
) -> None:
    alone_s = simulate([], made(rows), 1, float)
    assert simulate([], made(rows), n_slots, lambda n: 1 + cost * (n - 1)) <= alone_s + 1e-6


def test_what_is_ended_before_its_promise_misses_it() -> None:
    work = WorkLeft(2.0, 5.0, end_s=1.0)
    assert simulate([work], [], 1, float) == 1.0 and work.reached_s == float("inf")


def test_a_gate_that_is_shut_opens_now_and_then() -> None:
    gate = JoinGate()
    assert gate.opens(True)
    opened = [i for i in range(1000) if gate.opens(False)]
    gaps = [after - before for before, after in pairwise(opened)]
    assert opened and gaps == sorted(gaps) and gaps[-1] > 2 * gaps[0]
