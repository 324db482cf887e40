"""Share the time model, the threads and the latest freezes of one engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from boardfit.edge.deadline.freezes import Freezes
from boardfit.edge.deadline.time_model import TimeModel
from boardfit.edge.types import Engine


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
