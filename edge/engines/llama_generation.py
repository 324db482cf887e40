"""Tokens in, tokens out: the prefill in steps, and a token at a time, or with guesses behind it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from boardfit.edge.engines import llama_library as library
from boardfit.edge.engines.abort import ChunkSizer, StopWatcher
from boardfit.edge.engines.claims import Claims
from boardfit.edge.engines.generation import Generation, aborted, raise_stop_error
from boardfit.edge.engines.llama_closing import Closer
from boardfit.edge.engines.llama_context import ABORTED, NO_SLOT, OK, LlamaContext
from boardfit.edge.engines.llama_sampler import Sampler
from boardfit.edge.engines.llama_vocab import Vocab
from boardfit.edge.engines.lookup import Gain, Guesser
from boardfit.edge.engines.text_stream import TextStream
from boardfit.edge.types import GenerationConfig, StreamStart, TokenEvent


class LlamaGeneration(Generation[LlamaContext]):
    """llama.cpp's, on a context."""

    def __init__(
        self, lib: Any, claims: Claims[LlamaContext], vocab: Vocab, chunks: ChunkSizer, n_ctx: int
    ) -> None:
        super().__init__(claims, n_ctx)
        self._lib, self._vocab, self._chunks = lib, vocab, chunks
        n_draft = claims.get().n_draft
        self.gain = Gain(n_draft) if n_draft else None
        self._is_streaming = False

    @property
    def threads_now(self) -> int:
        """Threads that compute, or would if a stream began now."""
        context = self._claims.get()
        if not self._is_streaming:
            context.stream_begins()
        return context.threads_now

    def stream(
        self,
        prompt: list[int],
        config: GenerationConfig,
        stop: Callable[[], bool] | None,
        t_start_ns: int,
    ) -> Iterator[TokenEvent]:
        """Answer a checked prompt; the time to the first token counts from `t_start_ns`."""
        stream_id = self.begin()
        vocab, text, n_out = self._vocab, TextStream(config.stop), 0
        with (
            Sampler(self._lib, config, vocab.n_tokens, prompt) as sampler,
            Closer(self._lib, vocab) as closer,
            StopWatcher(
                stop, self._claims.interrupt, self._claims.get().give_up_if_stuck
            ) as watcher,
            self._computing(),
        ):
            with self._claims.lock:
                n_reused = self._claims.get_for(stream_id).keep_prefix(prompt)
            if not self._prefill(stream_id, prompt, watcher):
                yield aborted(text)
                return
            t_ns = t_prefill_ns = time.monotonic_ns()
            self.last_start = StreamStart(len(prompt), n_reused, t_start_ns, t_prefill_ns)
            guesser = self._guesser(config, prompt)
            while True:
                with self._claims.lock:
                    context = self._claims.get_for(stream_id)
                    pressure = config.pressure() if config.pressure else 0.0
                    chosen_by = closer if pressure > 0 and closer.can_close else sampler
                    index = guesser.index if guesser else -1
                    token = chosen_by.sample(context.handle, pressure, index)
                    t_before_ns, t_ns = t_ns, time.monotonic_ns()
                    ended = not config.ignore_eos and vocab.is_eog(token)
                    piece = vocab.piece(token)
                    is_cached = False
                    n_cached = len(context.cached)
                    if guesser is not None:
                        # The token itself does not count as cached yet, guessed or not.
                        n_cached -= guesser.n_left
                        is_cached, n_wrong = guesser.check(token)
                        if n_wrong:
                            context.truncate(n_cached)
                if ended:
                    yield TokenEvent(None, text.flush(), t_ns, "stop")
                    return
                n_out += 1
                shown = text.push(piece)
                finish = self._finish(text, n_out, n_cached, config)
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
                # What may still come behind this token: guesses beyond it would be thrown away.
                room = self._n_ctx - n_cached - 2 if pressure == 0 else 0
                if config.max_tokens > 0:
                    room = min(room, config.max_tokens - n_out - 1)
                guesses = guesser.guess(room) if guesser is not None else []
                if not self._step(stream_id, [token, *guesses], guesser, watcher):
                    yield aborted(text)
                    return

    def _guesser(self, config: GenerationConfig, prompt: list[int]) -> Guesser | None:
        """Only greedy answers are guessed: there a guess is right or wrong, and right ones change
        nothing.
        """
        is_greedy = config.temperature == 0 and config.repeat_penalty == 1
        return Guesser(prompt, self.gain) if self.gain is not None and is_greedy else None

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """While a stream runs: the cores are ours, as far as others leave them."""
        with self._claims.lock:
            self._claims.get().stream_begins()
            self._is_streaming = True
        try:
            yield
        finally:
            self._is_streaming = False
            if (context := self._claims.held) is not None:
                context.stream_ended()

    def _prefill(self, stream_id: int, prompt: list[int], watcher: StopWatcher) -> bool:
        done = 0
        while True:
            if watcher.stopped():
                return False
            with self._claims.lock:
                context = self._claims.get_for(stream_id)
                done = len(context.cached)
                chunk = prompt[done : done + self._chunks.next_size(interruptible=watcher.active)]
                t_ns = time.monotonic_ns()
                code = context.evaluate(chunk)
            if code == ABORTED and self._is_to_repeat(context, watcher):
                continue
            if code != OK:
                return self._stopped_or_raise(code, len(chunk), watcher)
            self._chunks.measured(len(chunk), (time.monotonic_ns() - t_ns) / 1e9)
            if done + len(chunk) == len(prompt):
                return True

    def _step(
        self, stream_id: int, tokens: list[int], guesser: Guesser | None, watcher: StopWatcher
    ) -> bool:
        """Evaluate one generated token, and guesses behind it. False if stopped meanwhile."""
        while True:
            t_ns = time.monotonic_ns()
            with self._claims.lock:
                context = self._claims.get_for(stream_id)
                if len(tokens) == 1:
                    code = context.evaluate_one(tokens[0])
                else:
                    code = context.evaluate(tokens, guesses=True)
            if code != ABORTED or not self._is_to_repeat(context, watcher):
                break
        if code != OK:
            return self._stopped_or_raise(code, len(tokens), watcher)
        if guesser is not None:
            guesser.stepped(tokens[1:], (time.monotonic_ns() - t_ns) / 1e9)
        return True

    def _is_to_repeat(self, context: LlamaContext, watcher: StopWatcher) -> bool:
        """Whether an aborted step was only given up to be done by fewer threads. A stop that came
        meanwhile was cleared with the abort flag, so that it has to be asked for again.
        """
        return context.was_given_up() and not self._claims.is_closing and not watcher.stopped()

    def _stopped_or_raise(self, code: int, n_tokens: int, watcher: StopWatcher) -> bool:
        if code == ABORTED:
            raise_stop_error(watcher)
            return False
        reason = "found no room in the KV cache" if code == NO_SLOT else f"failed (code {code})"
        raise library.engine_error(f"llama.cpp {reason} while evaluating {n_tokens} tokens")
