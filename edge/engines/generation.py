"""Tokens in, tokens out: steps that read a part of a prompt, and a token for every other stream, or
guesses behind one. A single stream is the case of one.
"""

from __future__ import annotations

import codecs
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

from boardfit.edge.engines.abort import StopWatcher
from boardfit.edge.engines.constraint import ConstrainedSampler, Grammars, TokenSampler
from boardfit.edge.engines.lease import Lease
from boardfit.edge.engines.lookup import Guesser, Sharing
from boardfit.edge.engines.prefix_cache import PrefixCache
from boardfit.edge.engines.vocabulary import EngineVocabulary
from boardfit.edge.template.thinking import count_begun
from boardfit.edge.types import FinishReason, GenerationConfig, StreamStart, TokenEvent

C = TypeVar("C", bound=PrefixCache)


class TextStream:
    """Bytes of one token at a time to text that may be shown: characters are held back until they
    are complete, and what may be the beginning of a stop string. `stopped` once one has come by.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(s for s in stop if s)
        # Invalid bytes must not end a generation: they become U+FFFD, as in every terminal.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Text that is safe to show after this token; what follows a stop string is dropped."""
        text = self._decoder.decode(piece)
        if not self._stop:
            return text
        return self._release(self._held + text)

    def flush(self) -> str:
        """What is still held when generation ends for another reason than a stop string."""
        if self.stopped:
            return ""
        rest = self._decoder.decode(b"", True)
        if not self._stop:
            return rest
        text = self._release(self._held + rest)
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        # The stop string that is complete first counts, so that it does not matter how the text
        # was cut into tokens; of several that end together, the longest.
        found = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = count_begun(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


@dataclass(eq=False)
class AnswerStream:
    """One answer on its way. `known` are its tokens, prompt and answer; a step evaluates those that
    its slot does not hold, with `guesses` behind them. `chosen` waits for the consumer, and while
    `is_ahead` the consumer has not asked since the last step.
    """

    known: list[int]
    config: GenerationConfig
    watcher: StopWatcher
    sampler: TokenSampler | None = None  # None: nothing is chosen
    closer: TokenSampler | None = None
    bound: ConstrainedSampler | None = None
    guesser: Guesser | None = None
    id: int = 0
    guesses: list[int] = field(default_factory=list)
    #: Where in the last step the logits are.
    index: int = -1
    is_ahead: bool = False
    was_cut: bool = False  # in the last step, and no stream had asked for that
    is_held: bool = False  # until others have ended: the cache has no room for all
    n_prompt: int = 0
    n_reused: int = 0
    t_start_ns: int = 0
    start: StreamStart | None = None
    error: Exception | None = None
    chosen: deque[ChosenToken] = field(default_factory=deque)


class ChosenToken(NamedTuple):
    """A token and its bytes, when it was chosen, how many were cached before it, whether it ends
    the turn, and whether nothing may follow it.
    """

    id: int
    piece: bytes
    t_ns: int
    n_cached: int
    is_end: bool
    is_last: bool


class SequenceEngine(ABC, Generic[C]):
    """The generation loop of every engine. Streams begin and end at any time; asking one on makes
    a step for all whose consumers wait. `n_ctx` tokens were asked for; a library may round up.
    `stop_texts` end an answer beside the tokens that do.
    """

    def __init__(
        self,
        lease: Lease[C],
        vocabulary: EngineVocabulary,
        n_ctx: int,
        stop_texts: tuple[str, ...] = (),
    ) -> None:
        self._lease, self._vocabulary, self.n_ctx = lease, vocabulary, n_ctx
        self._stop_texts = stop_texts
        self.last_start: StreamStart | None = None
        self._streams: list[AnswerStream] = []  # the one that began first comes first
        self._sharing = Sharing()
        self.n_shared = 0

    def slowdown(self, n: int) -> float:
        return self._sharing.slowdown(n)

    def sharing_pays(self, n: int) -> bool:
        return self._sharing.pays(n)

    def _generate(
        self,
        prompt: list[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
        t_start_ns: int,
    ) -> Iterator[TokenEvent]:
        """Answer a checked prompt; the time to the first token counts from `t_start_ns`."""
        with (
            self._samplers(config, prompt) as (sampler, closer),
            StopWatcher(stop, self._lease.interrupt, self._get_look()) as watcher,
        ):
            bound = self._bind(sampler, config, self.n_ctx - len(prompt))
            guesser = self._make_guesser(config, prompt, bound)
            stream = AnswerStream(list(prompt), config, watcher, sampler, closer, bound, guesser)
            stream.t_start_ns, stream.n_prompt = t_start_ns, len(prompt)
            self.last_start = None
            with self._joined(stream):
                yield from self._deliver(stream)

    @contextmanager
    def _joined(self, stream: AnswerStream) -> Iterator[None]:
        """Let the stream take part in steps within the block."""
        self._take_slot(stream)
        self._streams.append(stream)
        try:
            yield
        finally:
            self._streams.remove(stream)
            self._lease.end(stream.id)
            for other in self._streams:
                other.is_held = False

    def _take_slot(self, stream: AnswerStream) -> None:
        """Another stream may have taken this one's: then it reads again what that dropped."""
        stream.id = self._lease.begin(stream.known)
        with self._lease.lock:
            if (slot := self._lease.get_for(stream.id)) is not None:
                n_kept = slot.keep_prefix(stream.known)
                stream.n_reused = n_kept if stream.start is None else stream.n_reused

    def _deliver(self, stream: AnswerStream) -> Iterator[TokenEvent]:
        """The events of a stream that has joined."""
        config, watcher = stream.config, stream.watcher
        stops = config.stop if config.ignore_eos else (*config.stop, *self._stop_texts)
        text, n_out, t_before_ns = TextStream(stops), 0, 0
        while True:
            if not stream.chosen:
                is_stopped = watcher.stopped() or not self._ask_on(stream)
                self.last_start = stream.start
                if is_stopped:
                    yield TokenEvent(None, text.flush(), time.monotonic_ns(), "aborted")
                    return
                if not stream.chosen:
                    if config.ticks:
                        yield TokenEvent(None, "", time.monotonic_ns())
                    continue
            chosen, stream.is_ahead = stream.chosen.popleft(), False
            if chosen.is_end:
                yield TokenEvent(None, text.flush(), chosen.t_ns, "stop")
                return
            n_out += 1
            shown = text.push(chosen.piece)
            finish = self._finish(text, n_out, chosen.n_cached, config)
            if finish is None and chosen.is_last:
                finish = "stop"
            if finish is not None:
                yield TokenEvent(chosen.id, shown + text.flush(), chosen.t_ns, finish)
                return
            if n_out > 1:
                watcher.expect((chosen.t_ns - t_before_ns) / 1e9)
            t_before_ns = chosen.t_ns
            yield TokenEvent(chosen.id, shown, chosen.t_ns)
            if stream.chosen and watcher.stopped():
                stream.chosen.clear()

    def _ask_on(self, stream: AnswerStream) -> bool:
        """Make a step for every stream that waits, unless one was made since this one was asked
        last. False if the stream was stopped.
        """
        if not stream.is_ahead:
            if not stream.is_held and self._lease.touch(stream.id) is None:
                self._take_slot(stream)
            if not self._advance(stream):
                return False
        stream.is_ahead = False
        if stream.error is not None:
            raise stream.error
        return True

    def _advance(self, asked: AnswerStream) -> bool:
        """One step for all streams whose consumers wait. False if `asked` was stopped in it."""
        lease = self._lease
        with lease.lock:
            waiting = [each for each in self._streams if not (each.is_ahead or each.chosen)]
            for each in waiting:
                each.is_ahead = True
            taking = [s for s in waiting if not s.is_held and lease.get_for(s.id) is not None]
            lease.allow()
            if taking and not self._step(taking):
                lease.was_cut()
                if asked.watcher.has_fired or lease.is_closing:
                    return False
                # For another stream, which may have left; a second time, for this one.
                is_known = any(each.watcher.has_fired for each in self._streams)
                was_cut, asked.was_cut = asked.was_cut, not is_known
                return is_known or not was_cut
            asked.was_cut = False
        return True

    def _choose(self, stream: AnswerStream, slot: C) -> None:
        """Choose the tokens behind what a step has evaluated: one, and one for each right guess."""
        if stream.start is None:
            now_ns = time.monotonic_ns()
            started = (stream.n_prompt, stream.n_reused, stream.t_start_ns, now_ns)
            stream.start = StreamStart(*started)
        try:
            while stream.sampler is not None and self._choose_one(stream, slot):
                pass
        except Exception as error:  # for the consumer of this stream alone
            stream.error = error

    def _choose_one(self, stream: AnswerStream, slot: C) -> bool:
        """Choose a token. Whether it was guessed, so that what follows it can be chosen too."""
        config, guesser, vocabulary = stream.config, stream.guesser, self._vocabulary
        pressure = config.pressure() if config.pressure else 0.0
        sampler = stream.closer if pressure > 0 and stream.closer is not None else stream.sampler
        sampler = stream.bound or sampler
        assert sampler is not None
        index = stream.index + max(0, guesser.index) if guesser else stream.index
        token = sampler.sample(self._logits(slot), pressure, index)
        t_ns, n_cached, is_guessed = time.monotonic_ns(), len(slot.cached), False
        if guesser is not None:
            # The token itself does not count as cached yet, guessed or not.
            n_cached -= guesser.n_left
            is_guessed, n_wrong = guesser.check(token)
            if n_wrong:
                slot.truncate(n_cached)
        is_end = not config.ignore_eos and vocabulary.is_eog(token)
        is_last = is_end or (stream.bound is not None and stream.bound.is_done)
        piece = vocabulary.piece(token)  # here: without the lock a closed engine has none
        stream.chosen.append(ChosenToken(token, piece, t_ns, n_cached, is_end, is_last))
        if not is_end:
            stream.known.append(token)
        if not is_last and not is_guessed and guesser is not None:
            # What may still come behind this token: guesses beyond it would be thrown away.
            room = self.n_ctx - n_cached - 2 if pressure == 0 or stream.bound else 0
            if config.max_tokens > 0:
                room = min(room, config.max_tokens - len(stream.known) + stream.n_prompt - 1)
            stream.guesses = guesser.guess(room)
        return is_guessed and not is_last

    def _bind(
        self, sampler: TokenSampler, config: GenerationConfig, room: int
    ) -> ConstrainedSampler | None:
        """`sampler`, held to the constraint if there is one."""
        if config.constraint is None:
            return None
        room = min(room, config.max_tokens) if config.max_tokens > 0 else room
        words, mask = self._vocabulary, self._mask
        return ConstrainedSampler(self.grammars, words, config, sampler, mask, room)

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles constraints for this vocabulary."""
        return Grammars(self._vocabulary)

    def _finish(
        self, text: TextStream, n_out: int, n_cached: int, config: GenerationConfig
    ) -> FinishReason | None:
        """Why the answer ends with its `n_out`th token; None if it goes on."""
        if text.stopped:
            return "stop"
        if n_out == config.max_tokens:
            return "length"
        return "context" if n_cached >= self.n_ctx else None

    # ---- what differs between engines ---------------------------------------------------------

    @abstractmethod
    def _samplers(
        self, config: GenerationConfig, prompt: list[int]
    ) -> AbstractContextManager[tuple[TokenSampler, TokenSampler | None]]:
        """What chooses a stream's tokens, and what does so under pressure (None: nothing)."""

    @abstractmethod
    def _logits(self, held: C) -> Any:
        """Where a sampler finds the logits of the latest step."""

    @abstractmethod
    def _mask(self, source: Any, index: int, allowed: Any) -> Any:
        """`source` with the logits of tokens that are not `allowed` (bool [n_vocab]) at -inf."""

    @abstractmethod
    def _step(self, streams: list[AnswerStream]) -> bool:
        """Evaluate a next part of what these streams know and their slots do not hold, and choose
        tokens behind what is complete. Holding the lease's lock. False if it was interrupted.
        """

    def _make_guesser(
        self, config: GenerationConfig, prompt: list[int], bound: ConstrainedSampler | None
    ) -> Guesser | None:
        """What guesses the next tokens of a stream; None where nothing does."""
        return None

    def _get_look(self) -> Callable[[], None] | None:
        """What the watcher calls from its own thread whenever it looks."""
        return None
