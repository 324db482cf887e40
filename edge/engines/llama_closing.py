"""Bring an answer to its end: sampler chains that favour what ends a sentence or the turn."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from boardfit.edge.engines.llama_vocab import Vocab
from boardfit.edge.errors import EngineError

# Texts that end a sentence; those that the vocabulary has as one token are favoured.
ENDINGS = (
    ".",
    "!",
    "?",
    "…",
    ".\n",
    ".\n\n",
    "!\n",
    "?\n",
    '."',
    ".”",
    ".)",
    "。",
    "！",
    "？",
    "।",
)
# What is added to their logits, by pressure: a nudge, a push, and at 1 nothing else is left.
LEVELS = ((0.0, 1.0), (0.34, 3.0), (0.67, 6.0), (1.0, 1e4))


class Vocabulary(Protocol):
    """What the search for closing tokens needs from any engine's vocabulary."""

    @property
    def end_tokens(self) -> Sequence[int]: ...
    def tokenize(self, text: str, *, special: bool) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...


class Closer:
    """The chains, one per level, made when first needed. Greedy: with little time left the
    likeliest ending is best, regardless of the temperature.
    """

    def __init__(self, lib: Any, vocab: Vocab) -> None:
        self._lib = lib
        self._vocab = vocab
        self._chains: dict[float, Any] = {}

    @property
    def can_close(self) -> bool:
        """Whether the vocabulary says how a turn ends."""
        return bool(self._vocab.end_tokens)

    def sample(self, context: Any, pressure: float, index: int = -1) -> int:
        """The likeliest token under `pressure` (more than 0) after the last token evaluated, or
        after the `index`th of the last step.
        """
        bias = max(bias for start, bias in LEVELS if pressure >= start)
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

    def __enter__(self) -> Closer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for chain in self._chains.values():
            self._lib.llama_sampler_free(chain)
        self._chains = {}


def closing_tokens(vocab: Vocabulary) -> list[int]:
    """Ids of the tokens that end a turn, and of those that stand for an ending on their own."""
    found = set(vocab.end_tokens)
    for text in ENDINGS:
        ids = vocab.tokenize(text, special=False)
        # A leading space that the tokenizer writes itself makes two tokens of one; the last counts.
        if ids and vocab.piece(ids[-1]).decode("utf-8", "replace") == text:
            found.add(ids[-1])
    return sorted(found)
