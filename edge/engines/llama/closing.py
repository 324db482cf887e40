"""Bring an answer to its end: sampler chains that favour what ends a sentence or the turn."""

from __future__ import annotations

from typing import Any

from boardfit.edge.engines.llama.vocab import Vocab
from boardfit.edge.engines.vocabulary import closing_bias, closing_tokens
from boardfit.edge.errors import EngineError


class LlamaCloser:
    """The chains, one per level, made when first needed. Greedy: with little time left the
    likeliest ending is best, regardless of the temperature.
    """

    def __init__(self, lib: Any, vocab: Vocab) -> None:
        self._lib = lib
        self._vocab = vocab
        self._chains: dict[float, Any] = {}

    def sample(self, context: Any, pressure: float, index: int = -1) -> int:
        """The likeliest token under `pressure` (more than 0) after the last token evaluated, or
        after the `index`th of the last step.
        """
        bias = closing_bias(pressure)
        chain = self._chains.get(bias) or self._make(bias)
        return int(self._lib.llama_sampler_sample(chain, context, index))

    def _make(self, bias: float) -> Any:
        lib, tokens = self._lib, closing_tokens(self._vocab)
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if not chain:
            raise EngineError("llama.cpp could not make a sampler")
        self._chains[bias] = chain
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
