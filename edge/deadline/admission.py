"""Choose the version of a question that fits its time limit, or refuse the question."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.outcome import Adjustment
from boardfit.edge.deadline.request import TimedRequest
from boardfit.edge.deadline.shape import Shaper, Version
from boardfit.edge.deadline.time_model import Span
from boardfit.edge.deadline.timing import Timing
from boardfit.edge.errors import DeadlineError
from boardfit.edge.types import AnswerFilter, GenerationConfig, Message
from boardfit.edge.units import format_seconds

#: A request is refused if it needs more than this multiple of the allowed time.
_SURELY = 1.05
#: A re-measurement before a refusal computes at most this many tokens, in this share of the time.
_PROBE_MOST, _PROBE_SHARE = 16, 0.1


@dataclass(frozen=True)
class Question:
    """What a session asks; the last of its `messages` may be longer than the context.

    `render` makes token ids, of which a prompt may have `room`; `check_room` raises InputError for
    more. `filter_answer` makes the filter of thinking for the answer to messages. `is_chat`: there
    is a chat template. `n_restored` tokens were read into the KV cache for it, in `restored_s`.
    """

    messages: Sequence[Message]
    render: Callable[[list[Message]], list[int]]
    filter_answer: Callable[[Sequence[Message]], AnswerFilter]
    check_room: Callable[[Sequence[int]], None]
    room: int
    n_forgotten: int
    is_chat: bool
    n_restored: int
    restored_s: float


class QuestionGate:
    """Admits one question in the version that fits its time, or refuses it."""

    def __init__(
        self, timing: Timing, question: Question, budget: Budget, received_ns: int
    ) -> None:
        engine, times = timing.engine, timing.follow_threads()
        self._timing, self._times = timing, times
        self._question, self._budget = question, budget
        self._received_ns = received_ns
        self._shaper = Shaper(
            question.render, engine.count, engine.reusable, times, timing.cold, question.room
        )

    def admit(self, asked_ns: int) -> TimedRequest:
        full, version, allowed_s = self._choose()
        if len(version.tokens) > self._question.room:
            self._question.check_room(version.tokens)
        if self._budget.on_miss == "refuse" and self._is_infeasible(version):
            if self._remeasure(version):
                full, version, allowed_s = self._choose()
            if self._is_infeasible(version):
                self._refuse(version)
        version = self._ask_for_brevity(version)
        adjustments = (*self._describe_reuse(full), *version.adjustments)
        request = TimedRequest(
            self._budget, self._received_ns, asked_ns, self._shaper, version, adjustments
        )
        request.notes = self._make_notes(version.prefill.high > allowed_s)
        if version.messages == full.messages and self._timing.can_abort:
            request.rescue_ns = self._rescue_at(request)
        request.shaped_ns = time.monotonic_ns()
        return request

    def _choose(self) -> tuple[Version, Version, float]:
        """Return the full version, the one that fits, and the seconds allowed for its prefill."""
        full = self._shaper.make_version(self._question.messages)
        allowed_s = self._allowed_s(full)
        return full, self._shaper.find_fitting(full, allowed_s), allowed_s

    def _elapsed_s(self) -> float:
        return (time.monotonic_ns() - self._received_ns) / 1e9

    def _allowed_s(self, version: Version) -> float:
        """Return the seconds allowed for the prefill, so that `n_min` tokens fit after it."""
        budget, elapsed_s = self._budget, self._elapsed_s()
        limits = [float("inf")]
        if budget.first_within_s is not None:
            limits.append(budget.first_within_s - elapsed_s)
        if budget.within_s is not None:
            answer_s = self._times.decode(budget.n_min - 1, len(version.tokens)).high
            # An engine that cannot be stopped within a step may overrun by one.
            overrun_s = 0.0 if self._timing.can_abort else answer_s
            margin_s = self._times.tail_s + overrun_s
            limits.append(budget.within_s - elapsed_s - answer_s - margin_s)
        return min(limits)

    def _is_infeasible(self, version: Version) -> bool:
        """Whether even the shortest answer would miss the budget by an optimistic estimate.

        A refusal should be right; a wrong acceptance mostly still gives the first token in time.
        """
        needs = self._estimate_needs(version)
        return max(math.sqrt(needs.low * needs.mid), needs.mid / _SURELY) > self._left_s()

    def _estimate_needs(self, version: Version) -> Span:
        """Estimate the time of the shortest useful answer, or of its first token."""
        prefill = self._times.prefill(version.n_new, version.n_reused, cold=self._timing.cold)
        if self._budget.within_s is None:
            return prefill
        return prefill + self._times.decode(self._budget.n_min - 1, len(version.tokens))

    def _left_s(self) -> float:
        return self._budget.limit_s - self._elapsed_s() - self._times.tail_s

    def _remeasure(self, version: Version) -> bool:
        """Compute a few tokens to check that the machine is still as slow as the last requests.
        Returns False if that was not needed or took too long. The KV cache keeps the result.
        """
        n_past, engine = version.n_reused, self._timing.engine
        with self._times.at_rest():
            if self._is_infeasible(version):
                return False
            n = self._times.prefill_tokens(_PROBE_SHARE * self._left_s(), n_past)
        tokens = version.tokens[: n_past + min(max(1, n), _PROBE_MOST)]
        began_ns = time.monotonic_ns()
        end_ns = began_ns + round(4 * _PROBE_SHARE * self._left_s() * 1e9)
        config = GenerationConfig(max_tokens=1)
        for _ in engine.stream(tokens, config, lambda: time.monotonic_ns() > end_ns):
            pass
        start, seconds = engine.last_start, (time.monotonic_ns() - began_ns) / 1e9
        times = self._timing.follow_threads()
        if start is not None:
            times.restart_pace(start.n_prompt - start.n_reused, start.n_reused, seconds)
        return start is not None

    def _refuse(self, version: Version) -> None:
        limit_s, needs = self._budget.limit_s, self._estimate_needs(version)
        elapsed_s = limit_s - self._left_s()
        nearest_s = needs.high + elapsed_s
        raise DeadlineError(
            f"needs {format_seconds(needs.mid + elapsed_s)}, {format_seconds(limit_s)} are allowed;"
            f" nearest feasible {format_seconds(nearest_s)}",
            next_step=f"--within {_round_up(nearest_s)}, a shorter question, or --on-miss best",
            allowed_s=limit_s,
            needs_s=(needs.low + elapsed_s, needs.mid + elapsed_s, nearest_s),
            nearest_s=nearest_s,
        )

    def _describe_reuse(self, full: Version) -> list[Adjustment]:
        adjustments, prefill, question = [], self._times.prefill, self._question
        if n := question.n_restored:
            saved_s = prefill(n).mid - question.restored_s
            adjustments.append(Adjustment("restored", f"{n} tokens computed earlier", saved_s))
        if n := full.n_reused:
            cost = f"{n} tokens were in the KV cache"
            adjustments.append(Adjustment("reused", cost, prefill(n).mid))
        return adjustments

    def _make_notes(self, is_late: bool) -> tuple[str, ...]:
        notes = []
        if is_late:
            notes.append("the time may not be enough for this question")
        if not self._timing.can_abort and self._budget.within_s is not None:
            notes.append("this engine ends a step before it stops: time for one is kept free")
        if self._question.n_forgotten:
            notes.append(f"{self._question.n_forgotten} old messages left the context")
        return tuple(notes)

    def _ask_for_brevity(self, version: Version) -> Version:
        budget = self._budget
        if budget.within_s is None or not budget.tell or not self._question.is_chat:
            return version
        token_s = self._times.token(len(version.tokens)).mid
        left_s = budget.within_s - self._elapsed_s() - version.prefill.mid - self._times.tail_s
        n_tokens = int(left_s / token_s)
        if not budget.n_min <= n_tokens < self._times.usual_answer:
            return version
        brief = self._shaper.ask_for_brevity(version, n_tokens)
        return brief if len(brief.tokens) <= self._question.room else version

    def _rescue_at(self, request: TimedRequest) -> int | None:
        """Return when an unfinished prefill gives way to the shortest version, if there is one."""
        end_ns, version = request.end_ns, request.version
        shortest = None if end_ns is None else self._shaper.shorten(version, 0.0)
        if shortest is None or shortest.prefill.high > 0.5 * version.prefill.mid:
            return None
        assert end_ns is not None
        answer = self._times.decode(self._budget.n_min, len(shortest.tokens))
        end_s = self._times.stop_s + self._times.tail_s
        return end_ns - round((shortest.prefill.high + answer.high + end_s) * 1e9)


def _round_up(seconds: float) -> str:
    """Format a time as a user types it, rounded up."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    return f"{math.ceil(10 * seconds) / 10:.1f}s"
