"""Choose the version of a question that fits its time limit, or refuse the question."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from boardfit.edge.chat.session import Session
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.freezes import Freezes
from boardfit.edge.deadline.outcome import Adjustment
from boardfit.edge.deadline.request import Request
from boardfit.edge.deadline.shape import Shaper, Version
from boardfit.edge.deadline.time_model import Span, TimeModel
from boardfit.edge.errors import DeadlineError
from boardfit.edge.states.store import StateStore
from boardfit.edge.types import Engine, GenerationConfig, Message
from boardfit.edge.units import format_seconds

#: A request is refused if it needs more than this multiple of the allowed time.
_SURELY = 1.05
#: A re-measurement before a refusal computes at most this many tokens, in this share of the time.
_LOOK_MOST, _LOOK_SHARE = 16, 0.1


class Admission(Session):
    """A session that estimates times and refuses requests that would miss their limit.

    `times` is the time model, which its owner also stores. `raw`: messages are plain text to
    continue, for models without a chat template. `cold`: nothing was computed since loading.
    """

    def __init__(
        self,
        engine: Engine,
        times: TimeModel,
        *,
        system: str | None = None,
        states: StateStore | None = None,
        raw: bool = False,
        cold: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(engine, system=system, states=states)
        self.times = times
        self._raw = raw
        self._cold = cold
        self._clock = clock
        self._freezes = Freezes()
        details = engine.describe().details
        self._can_abort = bool(details.get("can_abort_prefill", False))
        self._can_close = bool(details.get("can_close", False))

    def render(self, messages: list[Message]) -> list[int]:
        if self._raw:
            return self.engine.prompt("\n".join(message.content for message in messages))
        return super().render(messages)

    def admit(
        self,
        asked: list[Message],
        budget: Budget,
        config: GenerationConfig,
        received_ns: int,
        asked_ns: int,
    ) -> Request:
        """Choose a version of the question. Raise DeadlineError when none fits the time."""
        self.times.use_threads(self.engine.threads_now)
        kept, tokens = self.trim(asked, config)
        adjustments = self._restore_prefix(tokens)
        shaper = self._shaper(config)
        full = shaper.version(kept)
        allowed_s = self._allowed_s(budget, full, received_ns)
        version = shaper.fitting(full, allowed_s)
        if len(version.tokens) > shaper.room:
            self.check_room(version.tokens)
        if budget.on_miss == "refuse" and self._is_infeasible(budget, version, received_ns):
            if self._remeasure(budget, version, received_ns):
                full = shaper.version(kept)
                allowed_s = self._allowed_s(budget, full, received_ns)
                version = shaper.fitting(full, allowed_s)
            if self._is_infeasible(budget, version, received_ns):
                self._refuse(budget, version, received_ns)
        if full.n_reused:
            saved = self.times.prefill(full.n_reused).mid
            reused = Adjustment("reused", f"{full.n_reused} tokens were in the KV cache", saved)
            adjustments = (*adjustments, reused)
        version = self._ask_for_brevity(shaper, version, budget, received_ns)
        request = Request(
            budget, received_ns, asked_ns, version, (*adjustments, *version.adjustments)
        )
        if version.prefill.high > allowed_s:
            request.notes += ("the time may not be enough for this question",)
        if not self._can_abort and budget.within_s is not None:
            request.notes += ("this engine ends a step before it stops: time for one is kept free",)
        if len(kept) < len(asked):
            request.notes += (f"{len(asked) - len(kept)} old messages left the context",)
        if version.messages == full.messages and self._can_abort:
            request.rescue_ns = self._rescue_at(shaper, request)
        request.shaped_ns = self._clock()
        return request

    def _restore_prefix(self, tokens: Sequence[int]) -> tuple[Adjustment, ...]:
        """Restore the KV state of these tokens from an earlier run, if reading it is faster.

        A state that was restored before the question came counts too.
        """
        self.recall(tokens, lambda n: self.times.prefill(n).mid)
        restored = self.take_restored()
        if not restored.n_tokens:
            return ()
        saved = self.times.prefill(restored.n_tokens).mid - restored.seconds
        return (Adjustment("restored", f"{restored.n_tokens} tokens computed earlier", saved),)

    def _shaper(self, config: GenerationConfig) -> Shaper:
        engine = self.engine
        room = engine.n_ctx - self.reserved(config)
        return Shaper(self.render, engine.count, engine.reusable, self.times, self._cold, room)

    def _allowed_s(self, budget: Budget, version: Version, received_ns: int) -> float:
        """Return the seconds allowed for the prefill.

        The first token must come in time, and `n_min` tokens must still fit after it.
        """
        gone_s = (self._clock() - received_ns) / 1e9
        limits = [float("inf")]
        if budget.first_within_s is not None:
            limits.append(budget.first_within_s - gone_s)
        if budget.within_s is not None:
            answer = self.times.decode(budget.n_min - 1, len(version.tokens))
            # An engine that cannot be stopped within a step may overrun by one.
            margin = self.times.tail_s if self._can_abort else self.times.tail_s + answer.high
            limits.append(budget.within_s - gone_s - answer.high - margin)
        return min(limits)

    def _is_infeasible(self, budget: Budget, version: Version, received_ns: int) -> bool:
        """Whether even the shortest answer would miss the budget by an optimistic estimate.

        The estimate lies between the low bound and the likely time, and not far below the likely
        time. A refusal should be right. A wrong acceptance mostly still gives the first token in
        time.
        """
        needs = self._needs(budget, version)
        sure_s = max(math.sqrt(needs.low * needs.mid), needs.mid / _SURELY)
        return sure_s > self._limit_s(budget, received_ns)

    def _needs(self, budget: Budget, version: Version) -> Span:
        """Estimate the time of the shortest useful answer, or of its first token if only that is
        limited.
        """
        prefill = self.times.prefill(version.n_new, version.n_reused, cold=self._cold)
        if budget.within_s is None:
            return prefill
        return prefill + self.times.decode(budget.n_min - 1, len(version.tokens))

    def _limit_s(self, budget: Budget, received_ns: int) -> float:
        """Return the seconds left for the answer, or for its first token if that is the limit."""
        gone_s = (self._clock() - received_ns) / 1e9
        return budget.limit_s - gone_s - self.times.tail_s

    def _remeasure(self, budget: Budget, version: Version, received_ns: int) -> bool:
        """Compute a few tokens to check that the machine is still as slow as the last requests.

        Call this before a refusal that rests on recent slowness. The cost is small, and the KV
        cache keeps the result. Returns False if the check was not needed or took too long.
        """
        with self.times.at_rest():
            if self._is_infeasible(budget, version, received_ns):
                return False
            n_past = version.n_reused
            n = self.times.prefill_tokens(_LOOK_SHARE * self._limit_s(budget, received_ns), n_past)
        tokens = version.tokens[: n_past + min(max(1, n), _LOOK_MOST)]
        began_ns = self._clock()
        end_ns = began_ns + round(4 * _LOOK_SHARE * self._limit_s(budget, received_ns) * 1e9)
        for _ in self.engine.stream(
            tokens, GenerationConfig(max_tokens=1), lambda: self._clock() > end_ns
        ):
            pass
        start, seconds = self.engine.last_start, (self._clock() - began_ns) / 1e9
        self.times.use_threads(self.engine.threads_now)
        if start is not None:
            self.times.look(start.n_prompt - start.n_reused, start.n_reused, seconds)
        return start is not None

    def _refuse(self, budget: Budget, version: Version, received_ns: int) -> None:
        limit = budget.limit_s
        gone_s = limit - self._limit_s(budget, received_ns)
        needs = self._needs(budget, version)
        nearest_s = needs.high + gone_s
        raise DeadlineError(
            f"needs {format_seconds(needs.mid + gone_s)}, {format_seconds(limit)} are allowed; "
            f"nearest feasible {format_seconds(nearest_s)}",
            next_step=f"--within {_typed(nearest_s)}, a shorter question, or --on-miss best",
        )

    def _ask_for_brevity(
        self, shaper: Shaper, version: Version, budget: Budget, received_ns: int
    ) -> Version:
        """Return `version` with a request for brevity, if time is short for a usual answer."""
        if budget.within_s is None or not budget.tell or self._raw or not self.engine.has_template:
            return version
        gone_s = (self._clock() - received_ns) / 1e9
        token = self.times.token(len(version.tokens))
        n_tokens = int(
            (budget.within_s - gone_s - version.prefill.mid - self.times.tail_s) / token.mid
        )
        if not budget.n_min <= n_tokens < self.times.usual_answer:
            return version
        brief = shaper.ask_for_brevity(version, n_tokens)
        return brief if len(brief.tokens) <= shaper.room else version

    def _rescue_at(self, shaper: Shaper, request: Request) -> int | None:
        """Return the time at which an unfinished prefill is replaced by the shortest version.

        None if there is nothing to shorten.
        """
        end_ns, version = request.end_ns, request.version
        shortest = None if end_ns is None else shaper.shortened(version, 0.0)
        if shortest is None or shortest.prefill.high > 0.5 * version.prefill.mid:
            return None
        assert end_ns is not None
        answer = self.times.decode(request.budget.n_min, len(shortest.tokens))
        needs_s = shortest.prefill.high + answer.high + self.times.stop_s + self.times.tail_s
        return end_ns - round(needs_s * 1e9)


def _typed(seconds: float) -> str:
    """Format a time as a user types it, rounded up."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    return f"{math.ceil(10 * seconds) / 10:.1f}s"
