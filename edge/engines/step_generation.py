"""Generation over a decoder: exported prefill gives no logits, so decode takes the last token."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

from boardfit.edge.engines.abort import StopWatcher
from boardfit.edge.engines.decoder import Decoder
from boardfit.edge.engines.generation import TokenGeneration, TokenSampler, raise_stop_error
from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.lease import Lease
from boardfit.edge.engines.lookup import Guesser
from boardfit.edge.engines.numpy_sampler import NumpyCloser, NumpySampler
from boardfit.edge.types import GenerationConfig

D = TypeVar("D", bound=Decoder)

#: What may run without looking up, so that a stop is honoured within 50 ms: a whole step, or a node
#: of one where steps can be cancelled.
_STEP_BUDGET_S = 0.040


class StepGeneration(TokenGeneration[D]):
    """A decoder's."""

    def __init__(
        self, lease: Lease[D], tokenizer: HfTokenizer, n_ctx: int, stop_texts: tuple[str, ...]
    ) -> None:
        super().__init__(lease, tokenizer, n_ctx, stop_texts)
        # A vocabulary padded for speed has logits that stand for nothing.
        self._n_vocab = tokenizer.n_tokens
        self._closer = NumpyCloser(tokenizer) if tokenizer.end_tokens else None

    def _samplers(
        self, config: GenerationConfig, prompt: list[int]
    ) -> contextlib.nullcontext[tuple[TokenSampler, TokenSampler | None]]:
        return contextlib.nullcontext((NumpySampler(config, prompt), self._closer))

    def _logits(self, held: D) -> Any:
        return held.logits[: self._n_vocab]

    def _prefill(self, stream_id: int, prompt: list[int], watcher: StopWatcher) -> bool:
        budget_s = _STEP_BUDGET_S if watcher.active else None
        while True:
            if watcher.must_leave():
                return False
            with self.lease.lock:
                decoder = self.lease.get_for(stream_id)
                done = len(decoder.cached)
                if done == len(prompt) - 1:
                    break
                ok = decoder.prefill(prompt[done:-1], budget_s=budget_s)
            if not ok:
                raise_stop_error(watcher)
                return False
        return self._step(stream_id, prompt[-1:], None, watcher)

    def _step(
        self, stream_id: int, tokens: list[int], guesser: Guesser | None, watcher: StopWatcher
    ) -> bool:
        """A decoder takes one token a step, so there are no guesses."""
        with self.lease.lock:
            ok = self.lease.get_for(stream_id).decode(tokens[0])
        if not ok:
            raise_stop_error(watcher)
        return ok
