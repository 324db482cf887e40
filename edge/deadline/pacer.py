"""Stream an answer so that it ends in time, at the end of a sentence if possible.

A prefill that falls behind is given up for a shorter version that shares what has been computed. As
time runs short, the answer is led to the end of a sentence and cut there. The end of the budget
stops the engine wherever it is.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

from boardfit.edge.deadline.outcome import Adjustment, Outcome
from boardfit.edge.deadline.request import TimedRequest
from boardfit.edge.deadline.soft_end import SentenceHold
from boardfit.edge.deadline.timing import Timing
from boardfit.edge.process.live import STATUS
from boardfit.edge.types import AnswerFilter, GenerationConfig, Message, StreamStart, TokenEvent

#: The soft end covers this share of the tokens that fit the time, and at most this many tokens.
_CLOSE_SHARE, _CLOSE_MOST, _CLOSE_LEAST = 0.1, 24, 3
#: Thoughts leave this share of the tokens that fit the time to the answer, and at most this many.
_ANSWER_SHARE, _ANSWER_MOST = 0.4, 128
#: Coming tokens may take this multiple of the past tokens' time.
_SLOWER = 1.1
#: Decode updates the time model after this many tokens, and not more often than this.
_LEARN_EVERY, _LEARN_NS = 32, 100 * 10**6


class PacedTurn:
    """A question with a time limit, and its answer so far. The caller keeps the `events`."""

    def __init__(
        self,
        timing: Timing,
        request: TimedRequest,
        filter_answer: Callable[[Sequence[Message]], AnswerFilter],
    ) -> None:
        """`filter_answer` makes the filter of thinking for the answer to some messages."""
        self.received_ns = request.received_ns
        self.events = request.events
        self.within_s = request.budget.within_s
        self._timing = timing
        self._request = request
        self._filter_answer = filter_answer
        self._config = GenerationConfig()
        self._stop: Callable[[], bool] | None = None
        self._hold = SentenceHold()
        self._stopped_ns = 0  # when a running step was first stopped for time; 0: not yet
        self._n_shared = timing.engine.n_shared
        self._start: StreamStart | None = None  # of the thoughts, when an answer followed

    @property
    def messages(self) -> Sequence[Message]:
        return self._request.version.messages

    @property
    def start(self) -> StreamStart | None:
        """How the prompt was read."""
        return self._start or self._timing.engine.last_start

    @property
    def tokens(self) -> Sequence[int]:
        return self._request.version.tokens

    def stream(
        self, config: GenerationConfig, stop: Callable[[], bool] | None
    ) -> Iterator[TokenEvent]:
        """Stream the answer, in a shorter version if the prefill had to be given up."""
        self._config, self._stop = config, stop
        if self._request.end_ns is None:
            yield from self._stream_unlimited()
            return
        yield from self._stream_version(self._request.end_ns)
        if self._take_shortest():
            yield from self._stream_version(self._request.end_ns)

    def finish(self) -> Outcome:
        """Learn from the answer, which has ended, and return how its budget was kept."""
        request, times = self._request, self._timing.times
        self._learn_decode()
        if self.events and self.events[-1].finish_reason in ("stop", "deadline"):
            times.observe_answer(request.n_out, whole=not request.shortened)
        now_ns = time.monotonic_ns()
        if request.last_ns:
            times.observe_tail((now_ns - request.last_ns) / 1e9)
        return request.outcome(now_ns)

    def _stream_unlimited(self) -> Iterator[TokenEvent]:
        began_ns = time.monotonic_ns()
        sort = self._filter_answer(self.messages)
        for event in self._open_stream(self.tokens, self._config, self._stop, sort):
            if event.token_id is not None:
                self._count_token(event.t_ns, began_ns)
            elif event.finish_reason == "aborted" and self._request.first_ns is None:
                self._learn_cut(began_ns)
            yield event

    def _open_stream(
        self,
        tokens: Sequence[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
        sort: AnswerFilter,
    ) -> Iterator[TokenEvent]:
        stream = self._timing.engine.stream(tokens, config, stop)
        return map(sort, STATUS.follow(stream, len(tokens)))

    def _take_shortest(self) -> bool:
        """Take the shortest version after a prefill that was given up. False if there is none."""
        request = self._request
        gave_up = request.rescue_ns is not None and request.first_ns is None
        if not gave_up or self._is_stopped() or request.left_s(time.monotonic_ns()) <= 0:
            return False
        request.rescue_ns = None
        shortest = request.shaper.shorten(request.version, 0.0)
        if shortest is None:
            return False
        change = dataclasses.replace(shortest.adjustments[-1], kind="selected late")
        request.version = shortest
        request.adjustments += (change,)
        self.events.clear()
        return True

    def _stream_version(self, end_ns: int) -> Iterator[TokenEvent]:
        """Stream the request's version until it ends, its time ends, or its rescue is due."""
        request, timing = self._request, self._timing
        hold = self._hold = SentenceHold()
        self._stopped_ns, began_ns = 0, time.monotonic_ns()
        timing.freezes.begin()
        bound = self._config.constraint  # where it begins, the engine itself leads it to its end
        is_bound = bound is not None and not bound.after
        pressure = self._pressure if timing.can_close and not is_bound else None
        config = dataclasses.replace(
            self._config, pressure=pressure, tokens_left=self._count_left if bound else None
        )
        sort = self._filter_answer(self.messages)
        for event in self._stream_answering(config, lambda: self._must_stop(end_ns), sort):
            if event.is_tick:
                yield event
                continue
            if event.token_id is not None:
                self._count_token(event.t_ns, began_ns)
                request.latest_ns.append(event.t_ns)
            shown = hold.push(event.text)
            if event.finish_reason is None:
                ends = not is_bound and self._must_end(shown)
            else:
                ends = self._was_stopped_for_time(event)
            if ends:
                request.shortened = True
                event = dataclasses.replace(event, finish_reason="deadline")
            if event.finish_reason is not None:
                shown += hold.rest(drop=event.finish_reason == "deadline")
            if event.finish_reason == "aborted" and request.first_ns is None:
                self._learn_cut(began_ns)
                if request.rescue_ns is not None and not self._is_stopped():
                    return  # another version follows
            if shown is not event.text:
                event = dataclasses.replace(event, text=shown)
            yield event
            if event.finish_reason is not None:
                return

    def _stream_answering(
        self, config: GenerationConfig, stop: Callable[[], bool], sort: AnswerFilter
    ) -> Iterator[TokenEvent]:
        """Stream an answer. Its thoughts are ended while there is still time for an answer."""
        tokens, n_thoughts, closing = list(self.tokens), 0, None
        for event in self._open_stream(tokens, config, stop, sort):
            yield event
            if event.token_id is not None:
                tokens.append(event.token_id)
                n_thoughts += 1
                closing = sort.find_closing()
            if closing is not None and self._must_answer(config, len(closing[1])):
                break
        else:
            return
        request, (text, ids) = self._request, closing
        self._learn_decode()
        self._start, now_ns = self._timing.engine.last_start, time.monotonic_ns()
        for i, token in enumerate(ids, 1):
            yield sort(TokenEvent(token, text if i == len(ids) else "", now_ns))
        # These were not sampled, so their time is not that of a token.
        request.latest_ns.clear()
        request.learned_at, request.learned_ns = request.n_out, now_ns
        cost = f"the model thought for {n_thoughts} tokens and was made to answer"
        request.adjustments += (Adjustment("thoughts ended", cost, 0.0),)
        if config.max_tokens >= 0:
            config = dataclasses.replace(config, max_tokens=config.max_tokens - request.n_out)
        if config.constraint is not None:
            bound = dataclasses.replace(config.constraint, thoughts=None)
            config = dataclasses.replace(config, constraint=bound)
        yield from self._open_stream([*tokens, *ids], config, stop, sort)

    def _must_answer(self, config: GenerationConfig, n_closing: int) -> bool:
        """Whether thoughts must end now, with `n_closing` tokens, so that an answer follows."""
        request, n_left = self._request, self._count_left()
        share = _ANSWER_SHARE * (request.n_out + n_left)
        n_answer = max(request.budget.n_min, min(_ANSWER_MOST, share))
        n_room = self._timing.engine.n_ctx - request.depth
        if config.max_tokens >= 0:
            n_room = min(n_room, config.max_tokens - request.n_out)
        return n_closing + 1 < min(n_left, n_room) and n_left <= n_closing + n_answer

    def _is_stopped(self) -> bool:
        return self._stop is not None and self._stop()

    def _must_stop(self, end_ns: int) -> bool:
        """Whether a running step must stop. The engine asks every few milliseconds."""
        if self._stop is not None and self._stop():
            return True
        now_ns = time.monotonic_ns()
        self._timing.freezes.observe(now_ns)
        rescue_ns = self._request.rescue_ns if self._request.first_ns is None else None
        if (rescue_ns and now_ns >= rescue_ns) or now_ns >= end_ns - self._timing.stop_ns(now_ns):
            self._stopped_ns = self._stopped_ns or now_ns
            return True
        return False

    def _was_stopped_for_time(self, event: TokenEvent) -> bool:
        """Whether `_must_stop` ended the answer within a token, and not the caller."""
        if not self._stopped_ns or event.finish_reason != "aborted":
            return False
        self._timing.times.observe_stop((event.t_ns - self._stopped_ns) / 1e9)
        return self._request.n_out > 0

    def _pressure(self) -> float:
        """How urgently the answer should end. The engine asks before each token."""
        n_left = self._count_left()
        window = self._window(n_left)
        if n_left > window:
            return 0.0
        self._hold.close()
        return 1.0 if n_left <= 2 else min(0.99, 1 - (n_left - 2) / window)

    def _must_end(self, shown: str) -> bool:
        """After a token: whether the next one would be too late, or this is a good place to end."""
        n_left = self._count_left()
        if n_left < 1:
            return True
        return n_left <= self._window(n_left) / 3 and bool(shown) and self._hold.is_whole

    def _count_left(self) -> float:
        """Return the number of tokens that there is time for, at the speed of this answer so
        far. It is a little low at the beginning; text beyond a sentence is held back, and the
        end stops the engine.
        """
        times, request, now_ns = self._timing.follow_threads(), self._request, time.monotonic_ns()
        token = times.token(request.depth)
        token_s = request.token_s or math.sqrt(token.mid * token.high)
        left_s = request.left_s(now_ns) - times.tail_s - self._timing.stop_ns(now_ns) / 1e9
        return left_s / (_SLOWER * token_s)

    def _window(self, n_left: float) -> float:
        """Return the number of last tokens in which the answer is led to its end."""
        n_fitting = self._request.n_out + n_left
        return min(_CLOSE_MOST, max(_CLOSE_LEAST, _CLOSE_SHARE * n_fitting))

    def _count_token(self, t_ns: int, began_ns: int) -> None:
        request = self._request
        request.n_out += 1
        request.last_ns = t_ns
        if request.first_ns is None:
            request.first_ns = request.learned_ns = t_ns
            request.learned_at = 1
            self._learn_prefill(began_ns)
        elif (
            request.n_out - request.learned_at > _LEARN_EVERY
            and t_ns - request.learned_ns > _LEARN_NS
        ):
            self._learn_decode()

    def _learn_prefill(self, began_ns: int) -> None:
        timing = self._timing
        start = timing.engine.last_start
        if start is not None and self._was_alone():
            seconds = (start.t_prefill_end_ns - began_ns) / 1e9
            n_new = start.n_prompt - start.n_reused
            times = timing.follow_threads()
            times.observe_prefill(n_new, start.n_reused, seconds, cold=timing.cold)
            timing.cold = False

    def _was_alone(self) -> bool:
        """Whether no step since this was last asked served others too: such steps teach nothing of
        what an answer takes.
        """
        before, self._n_shared = self._n_shared, self._timing.engine.n_shared
        return before == self._n_shared

    def _learn_cut(self, began_ns: int) -> None:
        if not self._was_alone():
            return
        seconds, version = (time.monotonic_ns() - began_ns) / 1e9, self._request.version
        self._timing.times.observe_cut_prefill(
            version.n_new, version.n_reused, seconds, cold=self._timing.cold
        )

    def _learn_decode(self) -> None:
        request = self._request
        n, ns = request.n_out - request.learned_at, request.last_ns - request.learned_ns
        if n > 0 and ns > 0 and self._was_alone():
            depth = len(self.tokens) + request.learned_at
            self._timing.times.observe_decode(n, depth, ns / 1e9)
        request.learned_at, request.learned_ns = request.n_out, request.last_ns
