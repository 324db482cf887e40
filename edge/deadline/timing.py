"""Share the time model, the threads and the latest freezes of one engine.

A CPU quota or preemption freezes a process for a part of each period (of 100 ms for cgroups). Work
with a time limit must then begin that much earlier. A freeze is a long gap between clock readings.
"""

from dataclasses import dataclass, field

from boardfit.edge.deadline.time_model import TimeModel
from boardfit.edge.types import Engine

# Readings follow each other at least this closely while the process runs
# (boardfit.edge.engines.abort).
_USUAL_NS = 45 * 10**6
# A freeze counts for this long, and for no more than this.
_KEPT_NS, _MOST_S = 3 * 10**9, 0.15
# A longer gap is a pause of the caller's, or a machine that slept.
_LONGEST_NS = 500 * 10**6


class Freezes:
    """The longest freeze of late, in seconds; 0 if there was none."""

    def __init__(self) -> None:
        self._before_ns: int | None = None
        self._seen: list[tuple[int, int]] = []  # end and length of each, in nanoseconds

    def begin(self) -> None:
        """Begin a series of readings. The time before it is no freeze."""
        self._before_ns = None

    def observe(self, now_ns: int) -> None:
        """Take one of many clock readings, of any thread; a gap is seen once, or not at all."""
        before_ns, self._before_ns = self._before_ns, now_ns
        if before_ns is not None and _USUAL_NS < now_ns - before_ns < _LONGEST_NS:
            kept = [seen for seen in self._seen if now_ns - seen[0] < _KEPT_NS]
            self._seen = [*kept, (now_ns, now_ns - before_ns)]

    def longest_s(self, now_ns: int) -> float:
        lengths = [length for end_ns, length in self._seen if now_ns - end_ns < _KEPT_NS]
        return min(max(lengths, default=0) / 1e9, _MOST_S)


@dataclass
class Timing:
    """What all requests to an engine share. `cold`: nothing was computed since loading."""

    engine: Engine
    times: TimeModel
    cold: bool = True
    freezes: Freezes = field(default_factory=Freezes)

    def __post_init__(self) -> None:
        details = self.engine.describe().details
        self.can_abort = bool(details.get("can_abort_prefill", False))
        self.can_close = bool(details.get("can_close", False))

    def follow_threads(self) -> TimeModel:
        """Return the time model, set to the number of threads that the engine uses now."""
        self.times.use_threads(self.engine.threads_now)
        return self.times

    def stop_ns(self, now_ns: int) -> int:
        """Return the nanoseconds before the end at which a running step must be stopped."""
        return round((self.times.stop_s + self.freezes.longest_s(now_ns)) * 1e9)
