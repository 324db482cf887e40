"""Keep the answers of a session within budgets of seconds.

Before the prefill, the fullest version of the question that fits is chosen, or the request refused
(`admission`). While the answer comes, it is ended in time, and teaches the time model (`pacer`).
"""

from __future__ import annotations

from boardfit.edge.deadline.admission import QuestionGate
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.pacer import PacedTurn
from boardfit.edge.deadline.question import Question
from boardfit.edge.deadline.store import TimeStore
from boardfit.edge.deadline.time_model import TimeModel
from boardfit.edge.deadline.timing import Timing
from boardfit.edge.types import Engine


class Deadline:
    """Keeps budgets on one engine. A session asks it before each answer."""

    def __init__(
        self,
        engine: Engine,
        times: TimeModel,
        *,
        store: TimeStore | None = None,
        cold: bool = True,
    ) -> None:
        """`store` keeps `times`. `cold`: nothing was computed since loading."""
        self.timing = Timing(engine, times, cold)
        self._store = store

    def predict_prefill_s(self, n_tokens: int) -> float:
        """Return the likely seconds to compute `n_tokens`."""
        return self.timing.follow_threads().prefill(n_tokens).mid

    def admit(
        self, question: Question, budget: Budget, received_ns: int, asked_ns: int
    ) -> PacedTurn:
        """Choose a version of the question. Raise DeadlineError when none fits the time."""
        gate = QuestionGate(self.timing, question, budget, received_ns)
        return PacedTurn(self.timing, gate.admit(asked_ns), question.filter_answer)

    def save(self) -> None:
        """Store what was learned."""
        if self._store is not None:
            self._store.save(self.timing.times, self.timing.engine.describe())
