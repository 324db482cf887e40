"""One request with a budget, while it runs and after it ended."""

from collections import deque
from dataclasses import dataclass, field

from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.outcome import Adjustment, Outcome
from boardfit.edge.deadline.shape import Shaper, Version
from boardfit.edge.deadline.soft_end import is_whole
from boardfit.edge.types import TokenEvent

# The speed of an answer is that of its latest tokens; fewer than this many are no measure.
_LATEST, _LATEST_LEAST = 17, 5


@dataclass
class TimedRequest:
    """The state of a request so far, in monotonic nanoseconds. `shaper` makes shorter versions.
    A prefill that is not done at `rescue_ns` is given up for one.
    """

    budget: Budget
    received_ns: int
    asked_ns: int
    shaper: Shaper
    version: Version
    adjustments: tuple[Adjustment, ...] = ()
    notes: tuple[str, ...] = ()
    rescue_ns: int | None = None
    shaped_ns: int = 0
    first_ns: int | None = None
    last_ns: int = 0
    events: list[TokenEvent] = field(default_factory=list)
    n_out: int = 0
    # When the latest tokens came.
    latest_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_LATEST))
    shortened: bool = False
    # Token index and time of the last update of the time model.
    learned_at: int = 0
    learned_ns: int = 0

    @property
    def end_ns(self) -> int | None:
        """When the time is over; None without a limit for the whole answer."""
        within_s = self.budget.within_s
        return None if within_s is None else self.received_ns + round(within_s * 1e9)

    def left_s(self, now_ns: int) -> float:
        end_ns = self.end_ns
        return float("inf") if end_ns is None else (end_ns - now_ns) / 1e9

    @property
    def depth(self) -> int:
        return len(self.version.tokens) + self.n_out

    @property
    def token_s(self) -> float | None:
        """Seconds per token that this answer took lately; None before there are enough of them."""
        n = len(self.latest_ns)
        if n < _LATEST_LEAST:
            return None
        return (self.latest_ns[-1] - self.latest_ns[0]) / (n - 1) / 1e9

    def outcome(self, end_ns: int) -> Outcome:
        """Return how the budget was kept by an answer that ended at `end_ns`."""
        budget, prefill = self.budget, self.version.prefill
        total_s = (end_ns - self.received_ns) / 1e9
        first_ns = self._find_first_ns()
        first_s = None if first_ns is None else (first_ns - self.received_ns) / 1e9
        has_answer = any(map(_is_answer, self.events))
        return Outcome(
            within_s=budget.within_s,
            first_within_s=budget.first_within_s,
            met=(
                has_answer
                and first_s is not None
                and (budget.within_s is None or total_s <= budget.within_s)
                and (budget.first_within_s is None or first_s <= budget.first_within_s)
            ),
            total_s=total_s,
            first_s=first_s,
            seconds=self._measure_phases(end_ns),
            predicted_prefill_s=(prefill.low, prefill.mid, prefill.high),
            adjustments=self.adjustments,
            shortened=self.shortened,
            whole_sentence=is_whole("".join(event.text for event in self.events)),
            n_out=self.n_out,
            n_possible=self._count_possible(),
            notes=self.notes if has_answer else (*self.notes, self._explain_silence()),
            has_answer=has_answer,
        )

    def _find_first_ns(self) -> int | None:
        """When the first token came; where the model thought before, that of the answer."""
        if not any(event.thought for event in self.events):
            return self.first_ns
        return next((event.t_ns for event in self.events if _is_answer(event)), None)

    def _explain_silence(self) -> str:
        if any(event.thought for event in self.events):
            return "the model was still thinking: --thinking off, or more time"
        return "the answer has no visible text"

    def _measure_phases(self, end_ns: int) -> dict[str, float]:
        first_ns = end_ns if self.first_ns is None else self.first_ns
        last_ns = self.last_ns or first_ns
        return {
            "queue": (self.asked_ns - self.received_ns) / 1e9,
            "prepare": (self.shaped_ns - self.asked_ns) / 1e9,
            "prefill": (first_ns - self.shaped_ns) / 1e9,
            "decode": (last_ns - first_ns) / 1e9,
            "rest": (end_ns - last_ns) / 1e9,
        }

    def _count_possible(self) -> int | None:
        """Tokens that the time would have allowed at the speed that was met."""
        end_ns = self.end_ns
        if self.first_ns is None or end_ns is None:
            return None
        if self.n_out < 2:
            return self.n_out
        token_ns = (self.last_ns - self.first_ns) / (self.n_out - 1)
        return max(self.n_out, 1 + int((end_ns - self.first_ns) / token_ns))


def _is_answer(event: TokenEvent) -> bool:
    """Whether an event shows something of the answer; a call of a tool is one."""
    return bool(event.text.strip() or event.calls)
