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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from edge.deadline.budget import Budget
from edge.deadline.outcome import Adjustment, Outcome
from edge.deadline.shape import Shaper, Version
from edge.deadline.soft_end import SentenceHold, is_whole
from edge.deadline.time_model import TimeModel
from edge.errors import DeadlineError
from edge.session import Session
from edge.types import Engine, GenerationConfig, Message, TokenEvent
from edge.units import format_seconds

#: What stopping a running step may take: the engine looks every 10 ms, and a node has to end.
_STOP_S = 0.015
#: From the last token to the caller: detokenizing, bookkeeping.
_TAIL_S = 0.002
#: The answer is led to its end over this share of the tokens there is time for, at most so many.
_CLOSE_SHARE, _CLOSE_MOST, _CLOSE_LEAST = 0.12, 24, 3
#: Decode teaches the time model every so many tokens.
_LEARN_EVERY = 32


@dataclass
class _Run:
    """One request while it runs. Times are monotonic nanoseconds; `end_ns` None: no limit."""

    received_ns: int
    asked_ns: int
    end_ns: int | None
    version: Version
    adjustments: tuple[Adjustment, ...]
    rescue_ns: int | None = None
    shaped_ns: int = 0
    events: list[TokenEvent] = field(default_factory=list)
    first_ns: int | None = None
    last_ns: int = 0
    n_out: int = 0
    learned_at: int = 0
    learned_ns: int = 0
    shortened: bool = False
    notes: tuple[str, ...] = ()

    def left_s(self, now_ns: int) -> float:
        return float("inf") if self.end_ns is None else (self.end_ns - now_ns) / 1e9


class TimedSession(Session):
    """One conversation with budgets. Not for two threads at once.

    `times` is shared with whoever stores it. `raw`: messages are plain text to be continued, for
    models without a chat template. `cold` says that nothing was computed since loading.
    """

    def __init__(
        self,
        engine: Engine,
        times: TimeModel,
        *,
        system: str | None = None,
        raw: bool = False,
        cold: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(engine, system=system)
        self.times = times
        self.last_outcome: Outcome | None = None
        self._raw = raw
        self._cold = cold
        self._clock = clock
        details = engine.describe().details
        self._can_abort = bool(details.get("can_abort_prefill", False))
        self._can_close = bool(details.get("can_close", False))

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
        given; earlier if the request waited in a queue). `last_outcome` tells afterwards.

        Raises DeadlineError when no version of the question can be answered in time and the budget
        says refuse; nothing was computed then and the conversation stays as it was.
        """
        config = config or GenerationConfig()
        asked_ns = self._clock()
        received_ns = asked_ns if received_ns is None else received_ns
        asked = [*self.messages, Message("user", text)]
        kept, _ = self.fit(asked, config)
        run = self._begin(kept, len(asked) - len(kept), budget, received_ns, asked_ns)
        try:
            yield from self._answer(run, budget, config, stop)
        except GeneratorExit:
            self._end(run, budget, asked)
            raise
        self._end(run, budget, asked)

    def render(self, messages: list[Message]) -> list[int]:
        if self._raw:
            return self.engine.prompt("\n".join(message.content for message in messages))
        return super().render(messages)

    # ---- before -------------------------------------------------------------------------------

    def _begin(
        self,
        kept: list[Message],
        n_dropped: int,
        budget: Budget,
        received_ns: int,
        asked_ns: int,
    ) -> _Run:
        """Choose a version. Raises DeadlineError when none can make it."""
        end_ns = None if budget.within_s is None else received_ns + round(budget.within_s * 1e9)
        shaper = self._shaper()
        full = shaper.version(kept)
        allowed_s = self._allowed_s(budget, full, received_ns)
        version = shaper.fitting(full, allowed_s)
        adjustments = version.adjustments
        if full.n_reused:
            saved = self.times.prefill(full.n_reused).mid
            reused = Adjustment("reused", f"{full.n_reused} tokens were in the KV cache", saved)
            adjustments = (reused, *adjustments)
        run = _Run(received_ns, asked_ns, end_ns, version, adjustments, shaped_ns=self._clock())
        if version.prefill.low > allowed_s and budget.on_miss == "refuse":
            self._refuse(budget, version, allowed_s)
        if version.prefill.high > allowed_s:
            run.notes += ("the time may not be enough for this question",)
        if n_dropped:
            run.notes += (f"{n_dropped} old messages left the context",)
        if end_ns is not None and not version.adjustments and self._can_abort:
            run.rescue_ns = self._rescue_at(shaper, version, end_ns, budget)
        return run

    def _shaper(self) -> Shaper:
        engine = self.engine
        return Shaper(self.render, engine.count, engine.reusable, self.times, self._cold)

    def _allowed_s(self, budget: Budget, version: Version, received_ns: int) -> float:
        """Seconds there are for the prefill: until the first token is due, and so that `n_min`
        tokens still fit behind it.
        """
        gone_s = (self._clock() - received_ns) / 1e9
        limits = [float("inf")]
        if budget.first_within_s is not None:
            limits.append(budget.first_within_s - gone_s)
        if budget.within_s is not None:
            answer = self.times.decode(budget.n_min - 1, len(version.tokens))
            margin = _TAIL_S if self._can_abort else _TAIL_S + answer.high
            limits.append(budget.within_s - gone_s - answer.high - margin)
        return min(limits)

    def _refuse(self, budget: Budget, version: Version, allowed_s: float) -> None:
        limit = budget.within_s if budget.within_s is not None else budget.first_within_s
        assert limit is not None
        needs_s = limit + version.prefill.mid - allowed_s
        nearest_s = limit + version.prefill.high - allowed_s
        raise DeadlineError(
            f"needs {format_seconds(needs_s)}, {format_seconds(limit)} are allowed; "
            f"nearest feasible {format_seconds(nearest_s)}",
            next_step=f"--within {nearest_s:.1f}s, a shorter question, or --on-miss best",
        )

    def _rescue_at(
        self, shaper: Shaper, version: Version, end_ns: int, budget: Budget
    ) -> int | None:
        """When the prefill must be done, or be given up for the shortest version; None if there is
        nothing to shorten.
        """
        shortest = shaper.shortened(version, 0.0)
        if shortest is None or shortest.prefill.high > 0.5 * version.prefill.mid:
            return None
        answer = self.times.decode(budget.n_min, len(shortest.tokens))
        return end_ns - round((shortest.prefill.high + answer.high + _STOP_S + _TAIL_S) * 1e9)

    # ---- while --------------------------------------------------------------------------------

    def _answer(
        self,
        run: _Run,
        budget: Budget,
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
    ) -> Iterator[TokenEvent]:
        yield from self._stream(run, config, stop)
        gave_up = run.rescue_ns is not None and run.first_ns is None
        if gave_up and not (stop and stop()) and run.left_s(self._clock()) > 0:
            run.rescue_ns = None
            shortest = self._shaper().shortened(run.version, 0.0)
            if shortest is not None:
                change = dataclasses.replace(shortest.adjustments[-1], kind="selected late")
                run.version = shortest
                run.adjustments += (change,)
                run.events.clear()
                yield from self._stream(run, config, stop)

    def _stream(
        self, run: _Run, config: GenerationConfig, stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        """Stream the run's version until it ends, its time ends, or its rescue is due."""
        hold = SentenceHold()
        began_ns = self._clock()
        abort_ns = None if run.end_ns is None else run.end_ns - round(_STOP_S * 1e9)

        def must_stop() -> bool:
            now_ns = self._clock()
            if stop is not None and stop():
                return True
            if run.first_ns is None and run.rescue_ns is not None and now_ns >= run.rescue_ns:
                return True
            return abort_ns is not None and now_ns >= abort_ns

        timed = stop is not None or run.end_ns is not None
        config = dataclasses.replace(config, pressure=self._pressure(run, hold))
        stream = self.engine.stream(run.version.tokens, config, must_stop if timed else None)
        for event in stream:
            if event.token_id is not None:
                self._count(run, event, began_ns)
            shown = hold.push(event.text)
            if event.finish_reason is None:
                ends = self._must_end(run, hold, shown)
            else:  # stopped by us within a token, not by the caller
                ends = event.finish_reason == "aborted" and run.n_out > 0 and not (stop and stop())
            if ends:
                run.shortened = True
                event = dataclasses.replace(event, finish_reason="deadline")
            if event.finish_reason is not None:
                shown += hold.rest(drop=event.finish_reason == "deadline")
            if event.finish_reason == "aborted" and run.first_ns is None:
                self._learn_cut(run, began_ns)
                if run.rescue_ns is not None and not (stop and stop()):
                    return  # another version follows
            event = dataclasses.replace(event, text=shown)
            run.events.append(event)
            yield event
            if event.finish_reason is not None:
                return

    def _pressure(self, run: _Run, hold: SentenceHold) -> Callable[[], float] | None:
        """Asked by the engine before each token: how urgently the answer should end."""
        if run.end_ns is None or not self._can_close:
            return None

        def pressure() -> float:
            n_left = self._tokens_left(run)
            window = self._window(run, n_left)
            if n_left > window:
                return 0.0
            hold.close()
            return 1.0 if n_left <= 2 else min(0.99, 1 - (n_left - 2) / window)

        return pressure

    def _tokens_left(self, run: _Run) -> float:
        token = self.times.token(len(run.version.tokens) + run.n_out)
        return (run.left_s(self._clock()) - _TAIL_S) / token.mid

    @staticmethod
    def _window(run: _Run, n_left: float) -> float:
        return min(_CLOSE_MOST, max(_CLOSE_LEAST, _CLOSE_SHARE * (run.n_out + n_left)))

    def _must_end(self, run: _Run, hold: SentenceHold, shown: str) -> bool:
        """After a token: whether the next one would be too late, or this is a good place to end."""
        if run.end_ns is None:
            return False
        depth = len(run.version.tokens) + run.n_out
        left_s = run.left_s(self._clock()) - _TAIL_S
        if left_s < self.times.token(depth).high:
            return True
        n_left = self._tokens_left(run)
        return n_left <= self._window(run, n_left) / 2 and bool(shown) and is_whole(hold.text)

    def _count(self, run: _Run, event: TokenEvent, began_ns: int) -> None:
        run.n_out += 1
        run.last_ns = event.t_ns
        if run.first_ns is None:
            run.first_ns = run.learned_ns = event.t_ns
            self._learn_prefill(run, began_ns)
        elif run.n_out - run.learned_at > _LEARN_EVERY:
            self._learn_decode(run)

    # ---- after --------------------------------------------------------------------------------

    def _learn_prefill(self, run: _Run, began_ns: int) -> None:
        start = self.engine.last_start
        if start is not None:
            seconds = (start.t_prefill_end_ns - began_ns) / 1e9
            n_new = start.n_prompt - start.n_reused
            self.times.observe_prefill(n_new, start.n_reused, seconds, cold=self._cold)
            self._cold = False
        run.learned_at = 1

    def _learn_cut(self, run: _Run, began_ns: int) -> None:
        seconds = (self._clock() - began_ns) / 1e9
        version = run.version
        self.times.observe_cut_prefill(version.n_new, version.n_reused, seconds, cold=self._cold)

    def _learn_decode(self, run: _Run) -> None:
        n = run.n_out - run.learned_at
        if n > 0 and run.last_ns > run.learned_ns:
            depth = len(run.version.tokens) + run.learned_at
            self.times.observe_decode(n, depth, (run.last_ns - run.learned_ns) / 1e9)
        run.learned_at, run.learned_ns = run.n_out, run.last_ns

    def _end(self, run: _Run, budget: Budget, asked: list[Message]) -> None:
        self._learn_decode(run)
        self.finish(
            asked,
            list(run.version.messages),
            list(run.version.tokens),
            run.events,
            run.received_ns,
        )
        if self.last_trace is not None:
            self.last_trace = dataclasses.replace(self.last_trace, deadline_s=budget.within_s)
        end_ns = self._clock()
        total_s = (end_ns - run.received_ns) / 1e9
        first_s = None if run.first_ns is None else (run.first_ns - run.received_ns) / 1e9
        met = (
            first_s is not None
            and (budget.within_s is None or total_s <= budget.within_s)
            and (budget.first_within_s is None or first_s <= budget.first_within_s)
        )
        text = "".join(event.text for event in run.events)
        prefill = run.version.prefill
        self.last_outcome = Outcome(
            within_s=budget.within_s,
            first_within_s=budget.first_within_s,
            met=met,
            total_s=total_s,
            first_s=first_s,
            seconds=self._phases(run, end_ns),
            predicted_prefill_s=(prefill.low, prefill.mid, prefill.high),
            adjustments=run.adjustments,
            shortened=run.shortened,
            whole_sentence=is_whole(text),
            n_out=run.n_out,
            n_possible=self._possible(run, budget),
            notes=run.notes,
        )

    @staticmethod
    def _phases(run: _Run, end_ns: int) -> dict[str, float]:
        first_ns = end_ns if run.first_ns is None else run.first_ns
        last_ns = run.last_ns or first_ns
        return {
            "queue": (run.asked_ns - run.received_ns) / 1e9,
            "prepare": (run.shaped_ns - run.asked_ns) / 1e9,
            "prefill": (first_ns - run.shaped_ns) / 1e9,
            "decode": (last_ns - first_ns) / 1e9,
            "rest": (end_ns - last_ns) / 1e9,
        }

    @staticmethod
    def _possible(run: _Run, budget: Budget) -> int | None:
        """Tokens that the time would have allowed at the speed that was met."""
        if budget.within_s is None or run.first_ns is None or run.end_ns is None:
            return None
        if run.n_out < 2:
            return run.n_out
        token_ns = (run.last_ns - run.first_ns) / (run.n_out - 1)
        return max(run.n_out, 1 + int((run.end_ns - run.first_ns) / token_ns))
