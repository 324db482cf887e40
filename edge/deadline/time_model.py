"""What a prefill and a token take on this board now, with bounds; corrected by every request.

    prefill(n, past) = call + n · token + n · (past + n/2) · depth         compute-bound
    decode(depth)    =        token         +            depth · depth     bandwidth-bound

The three (two) constants of a curve start from the plan and are fitted to what was met, by least
squares of the relative error with slow forgetting. On top of the curve a pace, the ratio of seconds
met to seconds expected over the last second or so, follows heat and other processes within a
request or two. Bounds are quantiles of how far earlier predictions were off. A request right after
loading is cold: its pages may still be in storage, so it teaches only what being cold costs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.errors import InputError

SCHEMA = 1

# Seconds of computing after which the pace has forgotten half: long enough to ride out one stall,
# short enough to follow a governor or a neighbour within a request.
_PACE_HALF_LIFE_S = 0.7
# What one observation may say of the pace at most, so that a single stall cannot rule it.
_PACE_CLIP = 8.0
# Weight that an old observation keeps with each new one: about 100 count.
_FORGET = 0.99
# Observations that the plan's constants are worth.
_PRIOR_WEIGHT = 0.5
_N_RESIDUALS = 64
_HIGH, _LOW = 0.97, 0.05
# No bound is narrower than this (relative), however well the past was predicted.
_NARROWEST = 0.08
# What a plan's figures are trusted to before anything was measured, where it does not say.
_PRIOR_BOUND = 0.6


@dataclass(frozen=True)
class Span:
    """Seconds: as few as `low`, likely `mid`, at most `high` but for a few in a hundred."""

    low: float
    mid: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.mid + other.mid, self.high + other.high)


@dataclass(frozen=True)
class Prior:
    """What is known before the first request: rates in tokens per second with an empty context,
    relative bounds, and the seconds that reading the weights from storage may add when cold.
    """

    prefill_tps: float
    decode_tps: float
    bound: float = _PRIOR_BOUND
    cold_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prefill_tps", "decode_tps", "bound"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and more than zero, got {value}")
        if not (math.isfinite(self.cold_s) and self.cold_s >= 0):
            raise InputError(f"cold_s must be finite and not negative, got {self.cold_s}")


class Curve:
    """Non-negative weights of a few physical terms, fitted to relative errors with forgetting."""

    def __init__(self, prior: Sequence[float]) -> None:
        n = len(prior)
        self.prior = tuple(prior)
        self.weights = list(prior)
        # Normal equations of Σ ((w·x − y) / y)², begun with the prior as an observation of each
        # weight on its own.
        self._a = [
            [_PRIOR_WEIGHT / w**2 if i == j else 0.0 for j in range(n)] for i, w in enumerate(prior)
        ]
        self._b = [_PRIOR_WEIGHT / w for w in prior]

    def predict(self, terms: Sequence[float]) -> float:
        return sum(w * x for w, x in zip(self.weights, terms, strict=True))

    def observe(self, terms: Sequence[float], seconds: float) -> None:
        """Take in that `terms` took `seconds` (more than zero)."""
        n = len(self.weights)
        for i in range(n):
            for j in range(n):
                self._a[i][j] = _FORGET * self._a[i][j] + terms[i] * terms[j] / seconds**2
            self._b[i] = _FORGET * self._b[i] + terms[i] / seconds
            # The prior never fades altogether: a direction that nobody walks keeps its value.
            floor = (1 - _FORGET) * _PRIOR_WEIGHT
            self._a[i][i] += floor / self.prior[i] ** 2
            self._b[i] += floor / self.prior[i]
        self.weights = _solve_non_negative(self._a, self._b)

    def state(self) -> dict[str, Any]:
        return {"prior": list(self.prior), "a": self._a, "b": self._b}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], n_terms: int) -> Curve:
        """Raises ValueError, TypeError or KeyError for what is no state of `n_terms` terms."""
        prior = _numbers(state["prior"], n_terms)
        if min(prior) <= 0:
            raise ValueError("a prior must be more than zero")
        curve = cls(prior)
        curve._a = [_numbers(row, n_terms) for row in state["a"]]
        curve._b = _numbers(state["b"], n_terms)
        if len(curve._a) != n_terms:
            raise ValueError(f"expected {n_terms} rows")
        curve.weights = _solve_non_negative(curve._a, curve._b)
        return curve


@dataclass
class Pace:
    """Seconds met over seconds expected, the last second counting most."""

    met_s: float = 0.0
    expected_s: float = 0.0

    @property
    def ratio(self) -> float:
        # One expected half-life of "as expected" keeps the first observations from ruling.
        weight = 0.25 * _PACE_HALF_LIFE_S
        return (self.met_s + weight) / (self.expected_s + weight)

    def observe(self, met_s: float, expected_s: float) -> None:
        keep = 0.5 ** (expected_s / _PACE_HALF_LIFE_S)
        ratio = min(max(met_s / expected_s, 1 / _PACE_CLIP), _PACE_CLIP)
        self.met_s = keep * self.met_s + ratio * expected_s
        self.expected_s = keep * self.expected_s + expected_s


@dataclass
class Residuals:
    """How far predictions were off, as log(met / predicted) of the latest requests."""

    prior_bound: float
    values: deque[float] = field(default_factory=lambda: deque(maxlen=_N_RESIDUALS))

    def add(self, met_s: float, predicted_s: float) -> None:
        self.values.append(math.log(met_s / predicted_s))

    def factors(self) -> tuple[float, float]:
        """Factors on the prediction for its low and high bound. While there are few observations
        the prior's bound stands beside them, fading.
        """
        n = len(self.values)
        fade = self.prior_bound * max(0.0, 1 - n / 12)
        low, high = -fade, fade
        if n:
            ordered = sorted(self.values)
            # The rank is rounded outwards: with n values, 1/(n+1) of what comes lies beyond.
            low = min(low, ordered[max(0, math.floor(_LOW * (n + 1)) - 1)])
            high = max(high, ordered[min(n - 1, math.ceil(_HIGH * (n + 1)) - 1)])
        return (
            math.exp(min(low, -_NARROWEST)),
            math.exp(max(high, _NARROWEST)),
        )


class TimeModel:
    """Predicts and learns; pure arithmetic without a clock of its own."""

    def __init__(self, prior: Prior) -> None:
        token_s, out_s = 1 / prior.prefill_tps, 1 / prior.decode_tps
        # Before it is measured: attention doubles a token's cost some thousands of tokens deep.
        self._prefill = Curve((out_s, token_s, token_s / 6000))
        self._decode = Curve((out_s, out_s / 6000))
        self._prefill_pace, self._decode_pace = Pace(), Pace()
        self._prefill_off = Residuals(prior.bound)
        self._decode_off = Residuals(prior.bound)
        self._cold_s = prior.cold_s
        self.n_requests = 0

    # ---- predictions --------------------------------------------------------------------------

    def prefill(self, n_new: int, n_past: int = 0, *, cold: bool = False) -> Span:
        """Seconds to evaluate `n_new` tokens behind `n_past` cached ones."""
        mid = self._prefill.predict(_prefill_terms(n_new, n_past)) * self._prefill_pace.ratio
        low, high = self._prefill_off.factors()
        extra = self._cold_s if cold else 0.0
        return Span(mid * low, mid + extra / 2, mid * high + extra)

    def token(self, depth: int) -> Span:
        """Seconds to generate one token with `depth` tokens in the context."""
        mid = self._decode.predict((1.0, float(depth))) * self._decode_pace.ratio
        low, high = self._decode_off.factors()
        return Span(mid * low, mid, mid * high)

    def decode(self, n: int, depth: int) -> Span:
        """Seconds to generate `n` tokens, the first with `depth` tokens in the context."""
        one = self.token(depth + n // 2)
        return Span(n * one.low, n * one.mid, n * one.high)

    def prefill_tokens(self, seconds: float, n_past: int = 0, *, cold: bool = False) -> int:
        """Most new tokens whose prefill stays within `seconds` at its high bound; 0 if none."""
        low, high = 0, 1
        while high < 1 << 22 and self.prefill(high, n_past, cold=cold).high <= seconds:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.prefill(middle, n_past, cold=cold).high <= seconds
            low, high = (middle, high) if fits else (low, middle)
        return low

    # ---- observations -------------------------------------------------------------------------

    def observe_prefill(
        self, n_new: int, n_past: int, seconds: float, *, cold: bool = False
    ) -> None:
        """A prefill of `n_new` tokens behind `n_past` took `seconds`."""
        if n_new <= 0 or not _is_time(seconds):
            return
        terms = _prefill_terms(n_new, n_past)
        expected = self._prefill.predict(terms)
        predicted = expected * self._prefill_pace.ratio
        if cold:
            self._cold_s += 0.5 * (max(0.0, seconds - predicted) - self._cold_s)
            return
        self._prefill_off.add(seconds, predicted)
        self._prefill_pace.observe(seconds, expected)
        self._prefill.observe(terms, _clipped(seconds, predicted))
        self.n_requests += 1

    def observe_cut_prefill(
        self, n_new: int, n_past: int, seconds: float, *, cold: bool = False
    ) -> None:
        """A prefill was stopped unfinished after `seconds`: it would have taken longer still. Says
        something only where that is more than was expected.
        """
        if n_new > 0 and _is_time(seconds) and seconds > self.prefill(n_new, n_past).mid:
            self.observe_prefill(n_new, n_past, seconds, cold=cold)

    def observe_decode(self, n: int, depth: int, seconds: float) -> None:
        """`n` tokens from `depth` on took `seconds` in all. Once per answer, or every few dozen
        tokens of a long one.
        """
        if n <= 0 or not _is_time(seconds):
            return
        terms = (1.0, depth + n / 2)
        expected = self._decode.predict(terms)
        predicted = expected * self._decode_pace.ratio
        if n >= 4:  # single tokens scatter too much to bound an answer by
            self._decode_off.add(seconds / n, predicted)
        self._decode_pace.observe(seconds, expected * n)
        self._decode.observe(terms, _clipped(seconds / n, predicted))

    # ---- state --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything learned, as plain data. The pace is left out: it is of the moment."""
        return {
            "schema": SCHEMA,
            "prefill": self._prefill.state(),
            "decode": self._decode.state(),
            "prefill_off": list(self._prefill_off.values),
            "decode_off": list(self._decode_off.values),
            "cold_s": self._cold_s,
            "n_requests": self.n_requests,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], prior: Prior) -> TimeModel:
        """Inverse of `to_dict`; `prior` bounds what little was observed. Raises InputError for
        anything else.
        """
        try:
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r:.20}, this version reads {SCHEMA}")
            model = cls(prior)
            model._prefill = Curve.from_state(data["prefill"], 3)
            model._decode = Curve.from_state(data["decode"], 2)
            for residuals, key in (
                (model._prefill_off, "prefill_off"),
                (model._decode_off, "decode_off"),
            ):
                residuals.values.extend(_numbers(data[key]))
            (model._cold_s,) = _numbers([data["cold_s"]])
            model._cold_s = max(0.0, model._cold_s)
            model.n_requests = int(data["n_requests"])
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"not a stored time model: {error}") from None
        return model


def _prefill_terms(n_new: int, n_past: int) -> tuple[float, float, float]:
    return (1.0, float(n_new), n_new * (n_past + n_new / 2))


def _is_time(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds > 0


def _clipped(seconds: float, predicted: float) -> float:
    """An outlier teaches the curve no more than that it was four times off."""
    return min(max(seconds, predicted / 4), predicted * 4)


def _numbers(values: Iterable[Any], n: int | None = None) -> list[float]:
    found = [float(value) for value in values]
    if not all(math.isfinite(value) for value in found) or (n is not None and len(found) != n):
        raise ValueError(f"expected {'finite' if n is None else n} numbers")
    return found


def _solve_non_negative(a: Sequence[Sequence[float]], b: Sequence[float]) -> list[float]:
    """Solution of the normal equations with no weight below zero: weights that come out negative
    are fixed at zero, worst first, and the rest solved again.
    """
    free = list(range(len(b)))
    while True:
        part = _solve([[a[i][j] for j in free] for i in free], [b[i] for i in free])
        if min(part) >= 0 or len(free) == 1:
            break
        del free[part.index(min(part))]
    weights = [0.0] * len(b)
    for i, weight in zip(free, part, strict=True):
        weights[i] = max(weight, 0.0)
    return weights


def _solve(a: list[list[float]], b: list[float]) -> list[float]:
    """Gaussian elimination of a few unknowns, rows scaled by their diagonal first: the terms of a
    curve differ by many powers of ten.
    """
    n = len(b)
    scale = [1 / math.sqrt(a[i][i]) for i in range(n)]
    rows = [[a[i][j] * scale[i] * scale[j] for j in range(n)] + [b[i] * scale[i]] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, n):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [x - factor * y for x, y in zip(rows[r], rows[i], strict=True)]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][j] * x[j] for j in range(i + 1, n))) / rows[i][i]
    return [value * s for value, s in zip(x, scale, strict=True)]
