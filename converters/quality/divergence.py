"""How far one model's next-token distributions are from another's: formulas, and nothing else.

Over the scored positions i, with P the reference's distribution, Q the artifact's, x the token that
really follows:

    kld_i = Σ_v P(v) · (ln P(v) − ln Q(v))          nats, ≥ 0; 0 where they agree
    nll_i = −ln Q(x)                                perplexity = exp(mean nll)
    same_i = arg max P = arg max Q                  top-1 agreement = mean

A window is evaluated from an empty cache and scored in its second half, where every position has
at least half a window of context: positions ⌊n/2⌋ … n−2 of n tokens, as `llama-perplexity
--kl-divergence` does (tools/perplexity/perplexity.cpp of llama.cpp). Logits beyond `n_vocab` are
padding of the embedding matrix; they are cut off before the softmax, on both sides.

Standard errors are those of the mean over positions, sample variance / n. Neighbouring positions
are not independent, so that the true error is somewhat larger.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from boardfit.edge.errors import IntegrityError

# Guessing among 200,000 tokens costs 12.2 nats; exp overflows above 709.
MOST_NATS = 300.0
SOURCE = "the source"
# Rows at once in float64: 16 rows of 150,000 are 19 MB.
ROWS = 16


def windows(n_tokens: int, size: int) -> Iterator[slice]:
    """Consecutive whole windows; what is left at the end is not read."""
    for start in range(0, n_tokens - size + 1, size):
        yield slice(start, start + size)


def scored_positions(size: int) -> range:
    """The positions of a window that are scored."""
    return range(size // 2, size - 1)


def log_softmax(logits: np.ndarray, n_vocab: int, what: str = "the artifact") -> np.ndarray:
    """Log-probabilities of rows of logits in float64, `[n, n_vocab]`; columns beyond are cut off.
    Raises IntegrityError, which calls the model `what`, for too few columns or values that are not
    finite.
    """
    if logits.ndim != 2 or logits.shape[1] < n_vocab:
        raise IntegrityError(
            f"the engine gave logits of shape {list(logits.shape)}; expected {n_vocab} columns"
        )
    rows = logits[:, :n_vocab].astype(np.float64)
    if not np.isfinite(rows).all():
        raise _not_working(what, "the engine computed logits that are not finite")
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Divergence:
    """Figures of the scored positions of one text. `ppl` is the artifact's, `ppl_reference` the
    source's; `ppl_ratio` is exp(mean(nll − nll_reference)), whose error is that of the pairs.
    """

    n_scored: int
    kld_mean: Estimate
    kld_p99: float
    kld_max: float
    top1_agree: Estimate
    ppl: Estimate
    ppl_reference: Estimate
    ppl_ratio: Estimate


class Tally:
    """Collects positions; `result` is their `Divergence`."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._kld: list[np.ndarray] = []
        self._nll: list[np.ndarray] = []
        self._nll_reference: list[np.ndarray] = []
        self._same: list[np.ndarray] = []

    def add(self, reference: np.ndarray, logits: np.ndarray, next_tokens: Sequence[int]) -> None:
        """`reference` are log-probabilities `[n, n_vocab]` of the source, `logits` the artifact's
        `[n, ≥ n_vocab]`, `next_tokens` the `n` tokens that follow in the text.
        """
        if not len(reference) == len(logits) == len(next_tokens):
            raise ValueError(f"{len(reference)}, {len(logits)} and {len(next_tokens)} positions")
        for start in range(0, len(next_tokens), ROWS):
            part = slice(start, start + ROWS)
            # Stored values are rounded; the softmax makes them a distribution again.
            p = log_softmax(reference[part], self._n_vocab, SOURCE)
            q = log_softmax(logits[part], self._n_vocab)
            rows, tokens = np.arange(len(p)), np.asarray(next_tokens[part])
            self._kld.append(np.einsum("ij,ij->i", np.exp(p), p - q))
            self._nll.append(-q[rows, tokens])
            self._nll_reference.append(-p[rows, tokens])
            self._same.append(p.argmax(axis=1) == q.argmax(axis=1))

    def result(self) -> Divergence:
        """Raises ValueError if nothing was added."""
        kld, nll = np.concatenate(self._kld), np.concatenate(self._nll)
        nll_reference, same = np.concatenate(self._nll_reference), np.concatenate(self._same)
        _require_working(nll_reference, SOURCE)
        _require_working(nll, "the artifact")
        return Divergence(
            n_scored=len(kld),
            kld_mean=estimate_mean(kld),
            kld_p99=float(np.quantile(kld, 0.99)),
            kld_max=float(kld.max()),
            top1_agree=estimate_mean(same.astype(np.float64)),
            ppl=exponential(estimate_mean(nll)),
            ppl_reference=exponential(estimate_mean(nll_reference)),
            ppl_ratio=exponential(estimate_mean(nll - nll_reference)),
        )


def check_working(logits: np.ndarray, tokens: Sequence[int]) -> None:
    """Raise IntegrityError for logits (a row per token) that no working model gives."""
    rows = log_softmax(logits[: len(tokens) - 1], logits.shape[-1], SOURCE)
    _require_working(-rows[np.arange(len(rows)), np.asarray(tokens[1:])], SOURCE)


def _require_working(nll: np.ndarray, what: str) -> None:
    """Raises IntegrityError for a loss that no working model has: exp would overflow."""
    mean = float(nll.mean())
    if not mean < MOST_NATS:
        raise _not_working(
            what, f"its loss is {mean:.0f} nats a token, where guessing has about 12"
        )


def _not_working(what: str, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{what} is no working model: {reason}",
        next_step="its weights are absurd, as in a damaged file: get the model again, and try it "
        "in the program that made it"
        if what == SOURCE
        else "try another recipe",
    )


def estimate_mean(values: np.ndarray) -> Estimate:
    """Mean and standard error; the error of a single value is 0."""
    n = len(values)
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    return Estimate(float(values.mean()), spread / math.sqrt(n))


def exponential(log: Estimate) -> Estimate:
    """exp of an estimate, its error by the derivative."""
    value = math.exp(log.value)
    return Estimate(value, value * log.stderr)
