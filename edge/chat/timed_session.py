"""A conversation whose answers keep a budget of seconds: `Session` with the deadline around it.

    session = TimedSession(engine, times=TimeModel(Prior(prefill_tps=180, decode_tps=30)))
    for event in session.ask_within("How warm is the board?", Budget(within_s=2.0)):
        print(event.text, end="", flush=True)
    print(session.last_outcome.line())

Before the prefill, the fullest version of the question that fits is chosen, or the request refused.
If the prefill falls behind, it is given up in time for a shorter version that shares what has been
computed. While tokens come, the answer is led to the end of a sentence as time runs short, and cut
there; the end of the budget itself stops the engine wherever it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from boardfit.edge.chat.admission import Admission
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.deadline.outcome import Adjustment, Outcome
from boardfit.edge.deadline.request import Request
from boardfit.edge.deadline.soft_end import SentenceHold
from boardfit.edge.errors import DeadlineError
from boardfit.edge.process.live import watched
from boardfit.edge.types import GenerationConfig, Message, TokenEvent

#: The soft end covers this share of the tokens that fit the time, and at most this many tokens.
_CLOSE_SHARE, _CLOSE_MOST, _CLOSE_LEAST = 0.1, 24, 3
#: Coming tokens may take this multiple of the past tokens' time.
_SLOWER = 1.1
#: Decode updates the time model after this many tokens, and not more often than this.
_LEARN_EVERY, _LEARN_NS = 32, 100 * 10**6


class TimedSession(Admission):
    """One conversation with budgets. Not for two threads at once.

    `small` is a session of a smaller model, which answers what this one would refuse.
    """

    small: TimedSession | None = None
    last_outcome: Outcome | None = None

    def ask_within(
        self,
        text: str,
        budget: Budget,
        config: GenerationConfig | None = None,
        stop: Callable[[], bool] | None = None,
        *,
        received_ns: int | None = None,
    ) -> Iterator[TokenEvent]:
        """Stream an answer to `text` that keeps `budget`, counted from `received_ns` (now, if not
        given; earlier if the request waited in a queue). `last_outcome` reports afterwards.

        Raises DeadlineError when no version of the question can be answered in time and the budget
        says refuse; nothing was computed then and the conversation stays as it was. Raises
        InputError when no version fits into the context.
        """
        config = config or GenerationConfig()
        asked_ns = self._clock()
        received_ns = asked_ns if received_ns is None else received_ns
        asked = [*self.messages, Message("user", text)]
        try:
            request = self.admit(asked, budget, config, received_ns, asked_ns)
        except DeadlineError as error:
            if self.small is None:
                raise
            yield from self._ask_small(self.small, text, budget, config, stop, received_ns, error)
            return
        try:
            yield from self._answer(request, config, stop)
        except GeneratorExit:
            self._end(request, asked)
            raise
        self._end(request, asked)

    @property
    def last_resort(self) -> TimedSession:
        """The session that is asked last: the smaller model's where there is one."""
        return self.small or self

    def _ask_small(
        self,
        small: TimedSession,
        text: str,
        budget: Budget,
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
        received_ns: int,
        why: DeadlineError,
    ) -> Iterator[TokenEvent]:
        """Let the smaller model answer, and take over what came of it."""
        small.system, small.messages = self.system, list(self.messages)
        try:
            yield from small.ask_within(text, budget, config, stop, received_ns=received_ns)
        finally:
            if small.messages != self.messages:  # it did answer
                self.messages = list(small.messages)
                self.last_answer, self.last_trace = small.last_answer, small.last_trace
                if small.last_outcome is not None:
                    change = Adjustment("smaller model", f"the model {why}", 0.0)
                    self.last_outcome = dataclasses.replace(
                        small.last_outcome,
                        adjustments=(change, *small.last_outcome.adjustments),
                    )

    # ---- while --------------------------------------------------------------------------------

    def _answer(
        self, request: Request, config: GenerationConfig, stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        if request.end_ns is None:
            yield from self._unlimited(request, config, stop)
            return
        yield from self._stream(request, config, stop)
        gave_up = request.rescue_ns is not None and request.first_ns is None
        if gave_up and not (stop and stop()) and request.left_s(self._clock()) > 0:
            request.rescue_ns = None
            shortest = self._shaper(config).shortened(request.version, 0.0)
            if shortest is not None:
                change = dataclasses.replace(shortest.adjustments[-1], kind="selected late")
                request.version = shortest
                request.adjustments += (change,)
                request.events.clear()
                yield from self._stream(request, config, stop)

    def _unlimited(
        self, request: Request, config: GenerationConfig, stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        """Stream an answer that has no end in time: nothing is done with it but learn from it."""
        began_ns = self._clock()
        tokens, events = request.version.tokens, request.events
        for event in watched(self.engine.stream(tokens, config, stop), len(tokens)):
            if event.token_id is not None:
                self._count(request, event.t_ns, began_ns)
            elif event.finish_reason == "aborted" and request.first_ns is None:
                self._learn_cut(request, began_ns)
            events.append(event)
            yield event

    def _stream(
        self, request: Request, config: GenerationConfig, stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        """Stream the request's version until it ends, its time ends, or its rescue is due."""
        hold = SentenceHold()
        began_ns = self._clock()
        end_ns = request.end_ns
        assert end_ns is not None
        self._freezes.begin()
        told_ns: int | None = None  # when a running step was first stopped for time

        def must_stop() -> bool:
            nonlocal told_ns
            if stop is not None and stop():
                return True
            now_ns = self._clock()
            self._freezes.look(now_ns)
            rescue = request.rescue_ns if request.first_ns is None else None
            if (rescue and now_ns >= rescue) or now_ns >= end_ns - self._stop_ns(now_ns):
                told_ns = told_ns or now_ns
                return True
            return False

        config = dataclasses.replace(config, pressure=self._pressure(request, hold))
        tokens = request.version.tokens
        stream = self.engine.stream(tokens, config, must_stop)
        for event in watched(stream, len(tokens)):
            if event.token_id is not None:
                self._count(request, event.t_ns, began_ns)
                request.latest_ns.append(event.t_ns)
            shown = hold.push(event.text)
            if event.finish_reason is None:
                ends = self._must_end(request, hold, shown)
            else:
                if told_ns and event.finish_reason == "aborted":
                    self.times.observe_stop((event.t_ns - told_ns) / 1e9)
                # Stopped by us within a token, not by the caller.
                ends = event.finish_reason == "aborted" and bool(told_ns and request.n_out)
            if ends:
                request.shortened = True
                event = dataclasses.replace(event, finish_reason="deadline")
            if event.finish_reason is not None:
                shown += hold.rest(drop=event.finish_reason == "deadline")
            if event.finish_reason == "aborted" and request.first_ns is None:
                self._learn_cut(request, began_ns)
                if request.rescue_ns is not None and not (stop and stop()):
                    return  # another version follows
            if shown is not event.text:
                event = dataclasses.replace(event, text=shown)
            request.events.append(event)
            yield event
            if event.finish_reason is not None:
                return

    def _stop_ns(self, now_ns: int) -> int:
        """Nanoseconds before the end at which a running step must be stopped."""
        return round((self.times.stop_s + self._freezes.longest_s(now_ns)) * 1e9)

    def _pressure(self, request: Request, hold: SentenceHold) -> Callable[[], float] | None:
        """Asked by the engine before each token: how urgently the answer should end."""
        if not self._can_close:
            return None

        def pressure() -> float:
            n_left = self._tokens_left(request)
            window = self._window(request, n_left)
            if n_left > window:
                return 0.0
            hold.close()
            return 1.0 if n_left <= 2 else min(0.99, 1 - (n_left - 2) / window)

        return pressure

    def _tokens_left(self, request: Request) -> float:
        """Tokens that there is time for, at the speed of this answer so far, or, at its beginning,
        between what is likely and its high bound. Somewhat fewer than it may come to: what a
        sentence has too much is held back and never shown, and the end of the time itself stops
        the engine.
        """
        self.times.use_threads(self.engine.threads_now)
        token = self.times.token(request.depth)
        token_s = request.token_s or math.sqrt(token.mid * token.high)
        now_ns = self._clock()
        left_s = request.left_s(now_ns) - self.times.tail_s - self._stop_ns(now_ns) / 1e9
        return left_s / (_SLOWER * token_s)

    @staticmethod
    def _window(request: Request, n_left: float) -> float:
        return min(_CLOSE_MOST, max(_CLOSE_LEAST, _CLOSE_SHARE * (request.n_out + n_left)))

    def _must_end(self, request: Request, hold: SentenceHold, shown: str) -> bool:
        """After a token: whether the next one would be too late, or this is a good place to end."""
        n_left = self._tokens_left(request)
        if n_left < 1:
            return True
        return n_left <= self._window(request, n_left) / 3 and bool(shown) and hold.is_whole

    def _count(self, request: Request, t_ns: int, began_ns: int) -> None:
        request.n_out += 1
        request.last_ns = t_ns
        if request.first_ns is None:
            request.first_ns = request.learned_ns = t_ns
            self._learn_prefill(request, began_ns)
        elif (
            request.n_out - request.learned_at > _LEARN_EVERY
            and t_ns - request.learned_ns > _LEARN_NS
        ):
            self._learn_decode(request)

    # ---- after --------------------------------------------------------------------------------

    def _learn_prefill(self, request: Request, began_ns: int) -> None:
        start = self.engine.last_start
        if start is not None:
            self.times.use_threads(self.engine.threads_now)
            seconds = (start.t_prefill_end_ns - began_ns) / 1e9
            n_new = start.n_prompt - start.n_reused
            self.times.observe_prefill(n_new, start.n_reused, seconds, cold=self._cold)
            self._cold = False
        request.learned_at = 1

    def _learn_cut(self, request: Request, began_ns: int) -> None:
        seconds = (self._clock() - began_ns) / 1e9
        version = request.version
        self.times.observe_cut_prefill(version.n_new, version.n_reused, seconds, cold=self._cold)

    def _learn_decode(self, request: Request) -> None:
        n = request.n_out - request.learned_at
        if n > 0 and request.last_ns > request.learned_ns:
            depth = len(request.version.tokens) + request.learned_at
            self.times.observe_decode(n, depth, (request.last_ns - request.learned_ns) / 1e9)
        request.learned_at, request.learned_ns = request.n_out, request.last_ns

    def _end(self, request: Request, asked: list[Message]) -> None:
        self._learn_decode(request)
        if request.events and request.events[-1].finish_reason in ("stop", "deadline"):
            self.times.observe_answer(request.n_out, whole=not request.shortened)
        version = request.version
        self.finish(
            asked,
            list(version.messages),
            list(version.tokens),
            request.events,
            request.received_ns,
        )
        if self.last_trace is not None:
            within_s = request.budget.within_s
            self.last_trace = dataclasses.replace(self.last_trace, deadline_s=within_s)
        now_ns = self._clock()
        if request.last_ns:
            self.times.observe_tail((now_ns - request.last_ns) / 1e9)
        self.last_outcome = request.outcome(now_ns)
