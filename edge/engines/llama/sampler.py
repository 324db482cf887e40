"""Chains of the library's samplers: one from a GenerationConfig, and those that end an answer."""

from __future__ import annotations

from typing import Any

from boardfit.edge.engines.llama.vocab import Vocab
from boardfit.edge.engines.vocabulary import closing_bias, closing_tokens
from boardfit.edge.errors import EngineError
from boardfit.edge.types import GenerationConfig

_PENALTY_LAST_N = 64  # tokens looked back on; upstream's default (common.h)
_MIN_KEEP = 1


def _make_chain(lib: Any) -> Any:
    params = lib.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = lib.llama_sampler_chain_init(params)
    if not chain:
        raise EngineError("llama.cpp could not make a sampler")
    return chain


class LlamaSampler:
    """Owns one chain. The stages are in upstream's order (common.h)."""

    def __init__(self, lib: Any, config: GenerationConfig, n_vocab: int, prompt: list[int]) -> None:
        self._lib = lib
        self._sample = lib.llama_sampler_sample
        self._chain = _make_chain(lib)
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
        """Draw from the logits of the last token, or of the `index`th of the last step."""
        return int(self._sample(self._chain, context, index))

    def __enter__(self) -> LlamaSampler:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_sampler_free(self._chain)
        self._chain = None


class LlamaCloser:
    """Chains that favour what ends a sentence or the turn, one per level, made when first needed.
    Greedy: with little time left the likeliest ending is best, at any temperature.
    """

    def __init__(self, lib: Any, vocab: Vocab) -> None:
        self._lib, self._vocab = lib, vocab
        self._chains: dict[float, Any] = {}

    def sample(self, context: Any, pressure: float, index: int = -1) -> int:
        """The likeliest token under `pressure`, at a place as `LlamaSampler.sample` has it."""
        bias = closing_bias(pressure)
        chain = self._chains.get(bias) or self._make(bias)
        return int(self._lib.llama_sampler_sample(chain, context, index))

    def _make(self, bias: float) -> Any:
        lib, tokens = self._lib, closing_tokens(self._vocab)
        chain = self._chains[bias] = _make_chain(lib)
        entries = (lib.llama_logit_bias * len(tokens))(*((token, bias) for token in tokens))
        lib.llama_sampler_chain_add(
            chain, lib.llama_sampler_init_logit_bias(self._vocab.n_tokens, len(tokens), entries)
        )
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        return chain

    def __enter__(self) -> LlamaCloser:
        return self

    def __exit__(self, *_: object) -> None:
        for chain in self._chains.values():
            self._lib.llama_sampler_free(chain)
        self._chains = {}
