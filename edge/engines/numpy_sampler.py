"""Choosing a token from logits in numpy, for engines whose library leaves that to the caller."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.vocabulary import closing_bias, closing_tokens
from boardfit.edge.types import GenerationConfig

_PENALTY_LAST_N = 64  # as `LlamaSampler`, so that one setting means one thing on every engine


class NumpySampler:
    """Penalties, top-k, top-p, min-p, temperature, then the draw: llama.cpp's order of stages
    (common.h), so that a configuration gives the same distribution on every engine.
    """

    def __init__(self, config: GenerationConfig, prompt: Sequence[int]) -> None:
        import numpy as np

        self._config = config
        self._random = None
        if config.temperature > 0:
            # A negative seed asks for a fresh one.
            self._random = np.random.default_rng(config.seed if config.seed >= 0 else None)
        self._recent: deque[int] | None = None
        if config.repeat_penalty != 1.0:  # the prompt counts as recent output
            self._recent = deque(prompt[-_PENALTY_LAST_N:], maxlen=_PENALTY_LAST_N)

    def sample(self, logits: Any, _pressure: float = 0.0, _index: int = -1) -> int:
        """A token for `logits` (float32 [n_vocab], left as they are)."""
        if self._recent:
            logits = self._penalized(logits)
        token = int(logits.argmax()) if self._random is None else self._draw(logits)
        if self._recent is not None:
            self._recent.append(token)
        return token

    def _penalized(self, logits: Any) -> Any:
        import numpy as np

        logits = logits.copy()
        recent_ids = np.fromiter(set(self._recent or ()), np.int64)
        values, penalty = logits[recent_ids], self._config.repeat_penalty
        logits[recent_ids] = np.where(values > 0, values / penalty, values * penalty)
        return logits

    def _draw(self, logits: Any) -> int:
        import numpy as np

        assert self._random is not None
        config, n_vocab = self._config, len(logits)
        k = config.top_k if 0 < config.top_k < n_vocab else n_vocab
        kept = np.argpartition(logits, n_vocab - k)[n_vocab - k :] if k < n_vocab else None
        if kept is None:
            kept = np.arange(n_vocab)
        # Descending, ties by id: the same logits always give the same order.
        kept = kept[np.lexsort((kept, -logits[kept]))]
        values = logits[kept].astype(np.float64)
        shares = _softmax(values)
        n_kept = len(kept)
        if config.top_p < 1:
            # The smallest set that reaches top_p: everything before the sum gets there, and one.
            n_kept = int(np.searchsorted(np.cumsum(shares), config.top_p)) + 1
        if config.min_p > 0:
            n_kept = min(n_kept, int((shares >= config.min_p * shares[0]).sum()))
        n_kept = max(1, min(n_kept, len(kept)))
        shares = _softmax(values[:n_kept] / config.temperature)
        at = int(np.searchsorted(np.cumsum(shares), self._random.random(), side="right"))
        return int(kept[min(at, n_kept - 1)])


class NumpyCloser:
    """Brings an answer to its end under pressure, as `LlamaCloser` does."""

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] | None = None

    def sample(self, logits: Any, pressure: float, _index: int = -1) -> int:
        """A token for `logits` (float32 [n_vocab], left as they are) under `pressure` above 0."""
        if self._tokens is None:
            self._tokens = closing_tokens(self._tokenizer)
        logits = logits.copy()
        logits[self._tokens] += closing_bias(pressure)
        return int(logits.argmax())


def _softmax(values: Any) -> Any:
    import numpy as np

    exponentials = np.exp(values - values[0])  # descending: the first is the largest
    return exponentials / exponentials.sum()
