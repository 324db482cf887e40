"""The library's own sampler chain, built from a GenerationConfig."""

from __future__ import annotations

from typing import Any

from boardfit.edge.errors import EngineError
from boardfit.edge.types import GenerationConfig

_PENALTY_LAST_N = 64  # tokens looked back on; upstream's default (common.h)
_MIN_KEEP = 1


class LlamaSampler:
    """Owns one chain; use it as a context manager. The order of the stages is upstream's default
    (common.h): penalties, top-k, top-p, min-p, temperature, then the draw.
    """

    def __init__(self, lib: Any, config: GenerationConfig, n_vocab: int, prompt: list[int]) -> None:
        self._lib = lib
        self._sample = lib.llama_sampler_sample
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = lib.llama_sampler_chain_init(params)
        if not self._chain:
            raise EngineError("llama.cpp could not make a sampler")
        penalize = config.repeat_penalty != 1.0
        if penalize:
            self._add(
                lib.llama_sampler_init_penalties(
                    n_vocab, _PENALTY_LAST_N, config.repeat_penalty, 0.0, 0.0
                )
            )
        if config.temperature == 0:
            self._add(lib.llama_sampler_init_greedy())
        else:
            if config.top_k > 0:
                self._add(lib.llama_sampler_init_top_k(config.top_k))
            if config.top_p < 1:
                self._add(lib.llama_sampler_init_top_p(config.top_p, _MIN_KEEP))
            if config.min_p > 0:
                self._add(lib.llama_sampler_init_min_p(config.min_p, _MIN_KEEP))
            self._add(lib.llama_sampler_init_temp(config.temperature))
            # -1 becomes 0xFFFFFFFF, the library's "seed me".
            self._add(lib.llama_sampler_init_dist(config.seed & 0xFFFFFFFF))
        if penalize:  # the prompt counts as recent output
            for token in prompt[-_PENALTY_LAST_N:]:
                lib.llama_sampler_accept(self._chain, token)

    def _add(self, stage: Any) -> None:
        self._lib.llama_sampler_chain_add(self._chain, stage)  # the chain owns it now

    def sample(self, context: Any, _pressure: float = 0.0, index: int = -1) -> int:
        """Draw from the logits of the last token evaluated, or of the `index`th of the last step,
        and accept the draw.
        """
        return int(self._sample(self._chain, context, index))

    def __enter__(self) -> LlamaSampler:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_sampler_free(self._chain)
        self._chain = None
