"""Freezes seen in the gaps between looks."""

from __future__ import annotations

from boardfit.edge.deadline.timing import Freezes

MS = 10**6


def looked(gaps_ms: list[float], freezes: Freezes | None = None) -> tuple[Freezes, int]:
    freezes, now_ns = freezes or Freezes(), 10**12
    freezes.observe(now_ns)
    for gap in gaps_ms:
        now_ns += round(gap * MS)
        freezes.observe(now_ns)
    return freezes, now_ns


def test_a_process_that_runs_is_not_frozen() -> None:
    freezes, now_ns = looked([10, 12, 40, 9] * 20)
    assert freezes.longest_s(now_ns) == 0


def test_the_longest_of_late_counts_and_is_forgotten() -> None:
    freezes, now_ns = looked([10, 60, 10, 80, 10, 50])
    assert freezes.longest_s(now_ns) == 0.08
    assert freezes.longest_s(now_ns + 2000 * MS) == 0.08
    assert freezes.longest_s(now_ns + 4000 * MS) == 0


def test_a_machine_that_slept_was_not_frozen_by_a_quota() -> None:
    freezes, now_ns = looked([10, 5000, 10])
    assert freezes.longest_s(now_ns) == 0


def test_the_pause_between_two_requests_is_none() -> None:
    freezes, now_ns = looked([10, 10])
    freezes.begin()
    freezes.observe(now_ns + 300 * MS)
    assert freezes.longest_s(now_ns + 300 * MS) == 0


def test_what_is_reckoned_with_has_a_bound() -> None:
    freezes, now_ns = looked([400])
    assert freezes.longest_s(now_ns) == 0.15
