"""The outcome of a request with a budget: met or missed, times, and adjustments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from boardfit.edge.units import format_seconds


@dataclass(frozen=True)
class Adjustment:
    """One thing done to keep the budget: what the answer may lose, and the prefill it saves."""

    kind: str
    cost: str
    gain_s: float

    def __str__(self) -> str:
        saves = f", saves about {format_seconds(self.gain_s)}" if self.gain_s > 0 else ""
        return f"{self.kind}: {self.cost}{saves}"


@dataclass(frozen=True)
class Outcome:
    """Times in seconds since the request was received. `met`: the answer and its first token
    came in time, with some text that is not thinking (`has_answer`). `n_possible`: tokens that
    the time would have allowed at the speed that was met. `shortened`: the answer was ended for
    time.
    """

    within_s: float | None
    first_within_s: float | None
    met: bool
    total_s: float
    first_s: float | None
    seconds: Mapping[str, float]
    predicted_prefill_s: tuple[float, float, float]
    adjustments: tuple[Adjustment, ...] = ()
    shortened: bool = False
    whole_sentence: bool = True
    n_out: int = 0
    n_possible: int | None = None
    notes: tuple[str, ...] = field(default=())
    has_answer: bool = True

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": dict(self.seconds)}

    def with_smaller_model(self, refusal: str) -> Outcome:
        """Return the outcome of an answer by the smaller model, which the other one refused."""
        change = Adjustment("smaller model", f"the model {refusal}", 0.0)
        return replace(self, adjustments=(change, *self.adjustments))

    def line(self) -> str:
        words = ["met" if self.met else "MISSED"]
        if not self.has_answer:
            words.append("no answer")
        if self.within_s is not None:
            words.append(f"{format_seconds(self.total_s)} of {format_seconds(self.within_s)}")
        if self.first_within_s is not None:
            first = "no first word" if self.first_s is None else format_seconds(self.first_s)
            words.append(f"first word {first} of {format_seconds(self.first_within_s)}")
        words += [f"{name} {format_seconds(s)}" for name, s in self.seconds.items() if s >= 5e-4]
        if self.shortened:
            words.append(f"shortened to {self.n_out} of {self.n_possible} tokens possible")
        return ", ".join(words)
