"""Tokens in, tokens out: the prefill in steps, and a token at a time, or with guesses behind it."""

import codecs
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Generic, TypeVar

from boardfit.edge.engines.abort import StopWatcher
from boardfit.edge.engines.constraint import ConstrainedSampler, Grammars, TokenSampler
from boardfit.edge.engines.lease import Lease
from boardfit.edge.engines.lookup import Guesser
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


class TokenGeneration(ABC, Generic[C]):
    """The generation loop of every engine. `n_ctx` tokens were asked for; a library may round up.
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
        self._marks: tuple[int, ...] = ()  # of the newest stream

    def _begin(self) -> int:
        """Lease what is held to a new stream; returns the stream's number."""
        stream_id = self._lease.begin()
        self.last_start, self._marks = None, ()
        return stream_id

    def _generate(
        self,
        prompt: list[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
        t_start_ns: int,
    ) -> Iterator[TokenEvent]:
        """Answer a checked prompt; the time to the first token counts from `t_start_ns`."""
        stream_id = self._begin()
        self._marks = config.marks
        lease, vocabulary, n_out = self._lease, self._vocabulary, 0
        stops = config.stop if config.ignore_eos else (*config.stop, *self._stop_texts)
        text = TextStream(stops)
        is_passed = config.passing.is_wanted if config.passing else None
        with (
            self._samplers(config, prompt) as (sampler, closer),
            StopWatcher(stop, lease.interrupt, self._get_look(), is_passed) as watcher,
        ):
            with lease.lock:
                n_reused = lease.get_for(stream_id).keep_prefix(prompt)
            known = list(prompt)
            if not (stream_id := self._read(stream_id, known, config, watcher)):
                yield aborted(text)
                return
            t_ns = t_prefill_ns = time.monotonic_ns()
            self.last_start = StreamStart(len(prompt), n_reused, t_start_ns, t_prefill_ns)
            bound = self._bind(sampler, config, self.n_ctx - len(prompt))
            guesser = self._make_guesser(config, prompt, bound)
            while True:
                with lease.lock:
                    held = lease.get_for(stream_id)
                    pressure = config.pressure() if config.pressure else 0.0
                    chosen_by = closer if pressure > 0 and closer is not None else sampler
                    chosen_by = bound or chosen_by
                    index = guesser.index if guesser else -1
                    token = chosen_by.sample(self._logits(held), pressure, index)
                    t_before_ns, t_ns = t_ns, time.monotonic_ns()
                    ended = not config.ignore_eos and vocabulary.is_eog(token)
                    piece = vocabulary.piece(token)
                    is_cached = False
                    n_cached = len(held.cached)
                    if guesser is not None:
                        # The token itself does not count as cached yet, guessed or not.
                        n_cached -= guesser.n_left
                        is_cached, n_wrong = guesser.check(token)
                        if n_wrong:
                            held.truncate(n_cached)
                if ended:
                    yield TokenEvent(None, text.flush(), t_ns, "stop")
                    return
                n_out += 1
                known.append(token)
                shown = text.push(piece)
                finish = self._finish(text, n_out, n_cached, config)
                if finish is None and bound is not None and bound.is_done:
                    finish = "stop"
                if finish is not None:
                    yield TokenEvent(token, shown + text.flush(), t_ns, finish)
                    return
                yield TokenEvent(token, shown, t_ns)
                if n_out > 1:
                    watcher.expect((t_ns - t_before_ns) / 1e9)
                if watcher.stopped():
                    yield aborted(text)
                    return
                if is_cached:
                    continue
                if watcher.must_leave():
                    if not (stream_id := self._read(stream_id, known, config, watcher)):
                        yield aborted(text)
                        return
                    continue
                tokens = [token]
                if guesser is not None:
                    # What may still come behind this token: guesses beyond it would be thrown away.
                    room = self.n_ctx - n_cached - 2 if pressure == 0 or bound else 0
                    if config.max_tokens > 0:
                        room = min(room, config.max_tokens - n_out - 1)
                    tokens += guesser.guess(room)
                if not self._step(stream_id, tokens, guesser, watcher):
                    yield aborted(text)
                    return

    def _read(
        self, stream_id: int, known: list[int], config: GenerationConfig, watcher: StopWatcher
    ) -> int:
        """Evaluate what of `known` is not cached. More urgent streams may pass meanwhile: then this
        one has another number. Returns the number; 0 if stopped.
        """
        while not self._prefill(stream_id, known, watcher):
            if config.passing is None or watcher.stopped() or self._lease.is_closing:
                return 0
            start = self.last_start
            with watcher.pausing:
                config.passing.let_pass()
                stream_id = self._begin()
            self.last_start, self._marks = start, config.marks
            with self._lease.lock:
                self._lease.get_for(stream_id).keep_prefix(known)
            self._resume()
        return stream_id

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

    def _resume(self) -> None:
        """Called when others have passed, and a stream goes on."""

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
    def _prefill(self, stream_id: int, prompt: list[int], watcher: StopWatcher) -> bool:
        """Evaluate what of `prompt` is not cached yet, in steps. False if stopped on the way."""

    @abstractmethod
    def _step(
        self, stream_id: int, tokens: list[int], guesser: Guesser | None, watcher: StopWatcher
    ) -> bool:
        """Evaluate one generated token, and the guesses behind it. False if stopped meanwhile."""

    def _make_guesser(
        self, config: GenerationConfig, prompt: list[int], bound: ConstrainedSampler | None
    ) -> Guesser | None:
        """What guesses the next tokens of a stream; None where nothing does."""
        return None

    def _get_look(self) -> Callable[[], None] | None:
        """What the watcher calls from its own thread whenever it looks."""
        return None


def aborted(text: TextStream) -> TokenEvent:
    """The last event of a stream that was stopped."""
    return TokenEvent(None, text.flush(), time.monotonic_ns(), "aborted")


def raise_stop_error(watcher: StopWatcher) -> None:
    """Raise the error that the caller's `stop` raised, if it raised one."""
    if watcher.error is not None:
        raise watcher.error
