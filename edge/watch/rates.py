"""Tokens per second from counters that are read now and then."""

from __future__ import annotations

from collections import deque

from boardfit.edge.process.live import Page

NS = 1e-9
WINDOW_S = 2.0
# Points of a sparkline's history.
KEPT = 120


class Rates:
    """The history of one process: feed it every page that is read."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()
        self.history: deque[float] = deque(maxlen=KEPT)

    def add(self, page: Page, now_s: float) -> float | None:
        """Decode tokens/s over the looks of the last two seconds. Gaps and the time they took are
        the process's own, so that prefill between answers, and the moment of a look, do not count.
        None while nothing is decoded.
        """
        self._seen.append((now_s, page.n_gaps, page.gaps_ns))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        _, n_before, ns_before = self._seen[0]
        n_gaps, span_ns = page.n_gaps - n_before, page.gaps_ns - ns_before
        if n_gaps <= 0 or span_ns <= 0:
            return None
        self.history.append(n_gaps / (span_ns * NS))
        return self.history[-1]


def mean_rate(page: Page) -> float | None:
    """Decode tokens/s over all answers so far; None before two tokens of one."""
    return page.n_gaps / (page.gaps_ns * NS) if page.gaps_ns > 0 else None
