"""Generation on a context of llama.cpp: steps that are given up, repeated, or hold guesses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from boardfit.edge.engines.abort import ChunkSizer, StopWatcher
from boardfit.edge.engines.generation import TokenGeneration, raise_stop_error
from boardfit.edge.engines.lease import Lease
from boardfit.edge.engines.llama import library
from boardfit.edge.engines.llama.closing import LlamaCloser
from boardfit.edge.engines.llama.context import ABORTED, NO_SLOT, OK, LlamaContext
from boardfit.edge.engines.llama.sampler import LlamaSampler
from boardfit.edge.engines.llama.vocab import Vocab
from boardfit.edge.engines.lookup import Gain, Guesser
from boardfit.edge.types import GenerationConfig


class LlamaGeneration(TokenGeneration[LlamaContext]):
    """llama.cpp's, on a context."""

    def __init__(
        self, lib: Any, lease: Lease[LlamaContext], vocab: Vocab, chunks: ChunkSizer, n_ctx: int
    ) -> None:
        super().__init__(lease, vocab, n_ctx)
        self._lib, self._vocab, self._chunks = lib, vocab, chunks
        n_draft = lease.get().n_draft
        self.gain = Gain(n_draft) if n_draft else None
        self._is_streaming = False

    @property
    def threads_now(self) -> int:
        """Threads that compute, or would if a stream began now."""
        context = self.lease.get()
        if not self._is_streaming:
            context.stream_begins()
        return context.threads_now

    @contextlib.contextmanager
    def _samplers(
        self, config: GenerationConfig, prompt: list[int]
    ) -> Iterator[tuple[LlamaSampler, LlamaCloser | None]]:
        vocab = self._vocab
        with (
            LlamaSampler(self._lib, config, vocab.n_tokens, prompt) as sampler,
            LlamaCloser(self._lib, vocab) as closer,
            self._computing(),
        ):
            yield sampler, closer if vocab.end_tokens else None

    def _logits(self, held: LlamaContext) -> Any:
        return held.handle

    def _make_guesser(self, config: GenerationConfig, prompt: list[int]) -> Guesser | None:
        """Only greedy answers are guessed: there a guess is right or wrong, and right ones change
        nothing.
        """
        is_greedy = config.temperature == 0 and config.repeat_penalty == 1
        return Guesser(prompt, self.gain) if self.gain is not None and is_greedy else None

    def _get_look(self) -> Callable[[], None]:
        return self.lease.get().give_up_if_stuck

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """While a stream runs: the cores are ours, as far as others leave them."""
        self._resume()
        try:
            yield
        finally:
            self._is_streaming = False
            if (context := self.lease.held) is not None:
                context.stream_ended()

    def _resume(self) -> None:
        with self.lease.lock:
            self.lease.get().stream_begins()
            self._is_streaming = True

    def _prefill(self, stream_id: int, prompt: list[int], watcher: StopWatcher) -> bool:
        done = 0
        while True:
            if watcher.must_leave():
                return False
            with self.lease.lock:
                context = self.lease.get_for(stream_id)
                done = len(context.cached)
                n = self._chunks.next_size(interruptible=watcher.active)
                marks = self.marks if context.keeps_marks else ()
                end = min((mark for mark in marks if done < mark < done + n), default=done + n)
                chunk = prompt[done:end]
                t_ns = time.monotonic_ns()
                code = context.evaluate(chunk)
                if code == OK and end in marks:
                    context.keep_mark()
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
        while True:
            t_ns = time.monotonic_ns()
            with self.lease.lock:
                context = self.lease.get_for(stream_id)
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
        return context.was_given_up() and not self.lease.is_closing and not watcher.stopped()

    def _stopped_or_raise(self, code: int, n_tokens: int, watcher: StopWatcher) -> bool:
        if code == ABORTED:
            raise_stop_error(watcher)
            return False
        reason = "found no room in the KV cache" if code == NO_SLOT else f"failed (code {code})"
        raise library.engine_error(f"llama.cpp {reason} while evaluating {n_tokens} tokens")
