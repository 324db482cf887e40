"""When answers end that are computed together: the arithmetic of promises, in seconds from now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_ALMOST_S = 1e-9


@dataclass(eq=False)
class WorkLeft:
    """What is left of an answer: seconds of the engine alone, for what was promised and at most. It
    is ended at `end_s`. `begun_s` and `reached_s` are found by `simulate`.
    """

    needs_s: float
    most_s: float
    prefill_s: float = 0.0
    end_s: float = float("inf")
    begun_s: float = 0.0
    reached_s: float = float("inf")

    def __post_init__(self) -> None:
        self.alone_s = self.needs_s

    def go_on(self, seconds: float, now_s: float) -> None:
        """The engine worked `seconds` for it alone, until `now_s`."""
        self.needs_s -= seconds
        self.most_s -= seconds
        if self.needs_s <= _ALMOST_S:
            self.reached_s = min(self.reached_s, now_s)

    @property
    def next_s(self) -> float:
        """What is left until something happens to it."""
        return self.needs_s if self.needs_s > _ALMOST_S else self.most_s


def simulate(
    running: Sequence[WorkLeft],
    waiting: Sequence[WorkLeft],
    n_slots: int,
    slowdown: Callable[[int], float],
    now_s: float = 0.0,
) -> float:
    """Let all take as long as they may; returns when the last has ended. At most `n_slots` of those
    that wait are answered together; `n` at once go on `slowdown(n)` times slower. While a prompt is
    read, the others get as good as nothing.
    """
    active, left = list(running), list(waiting)
    while active or left:
        while left and (not active or len(active) < n_slots):
            work = left.pop(0)
            work.begun_s = now_s
            read_s = min(work.prefill_s, work.most_s) if active else 0.0
            now_s += read_s
            work.go_on(read_s, now_s)
            active.append(work)
        factor = slowdown(len(active))
        step_s = min(min(work.next_s * factor, work.end_s - now_s) for work in active)
        step_s = max(0.0, step_s)
        now_s += step_s
        for work in active:
            work.go_on(step_s / factor, now_s)
        active = [
            work for work in active if work.most_s > _ALMOST_S and work.end_s - now_s > _ALMOST_S
        ]
    return now_s


class JoinGate:
    """Whether one more answer joins those that run: while that pays, and now and then to see."""

    def __init__(self) -> None:
        self._n_refused, self._pause = 0, 8

    def opens(self, pays: bool) -> bool:
        """Asked in every round in which one could join."""
        if pays:
            self._n_refused, self._pause = 0, 8
            return True
        self._n_refused += 1
        if self._n_refused < self._pause:
            return False
        self._n_refused, self._pause = 0, min(2 * self._pause, 4096)
        return True
