"""Fit times: a curve of physical terms, a pace on top of it, bounds around it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Seconds of computing after which the pace has forgotten half: long enough to ride out one stall,
# short enough to follow a governor or a neighbour within a request.
_PACE_HALF_LIFE_S = 0.7
# What one observation may say of the pace at most, so that a single stall cannot rule it.
_PACE_CLIP = 8.0
# Weight that an old observation keeps with each new one: about 100 count.
_FORGET = 0.99
# Observations that the plan's constants are worth.
_PRIOR_WEIGHT = 0.5
# A weight stays above this share of its prior.
_LEAST = 0.01
_N_RESIDUALS = 64
_HIGH, _LOW = 0.97, 0.05
# No bound is narrower than this (relative), however well the past was predicted.
_NARROWEST = 0.08


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
        n = len(self.weights)
        for i in range(n):
            for j in range(n):
                self._a[i][j] = _FORGET * self._a[i][j] + terms[i] * terms[j] / seconds**2
            self._b[i] = _FORGET * self._b[i] + terms[i] / seconds
            # The prior never fades completely: a direction without data keeps its value.
            floor = (1 - _FORGET) * _PRIOR_WEIGHT
            self._a[i][i] += floor / self.prior[i] ** 2
            self._b[i] += floor / self.prior[i]
        self._solve()

    def _solve(self) -> None:
        # Few observations may put all of the time on one term: none is ever for nothing.
        weights = _solve_non_negative(self._a, self._b)
        self.weights = [max(w, _LEAST * p) for w, p in zip(weights, self.prior, strict=True)]

    def state(self) -> dict[str, Any]:
        return {"prior": list(self.prior), "a": self._a, "b": self._b}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], n_terms: int) -> Curve:
        """Raises ValueError, TypeError or KeyError for what is no state of `n_terms` terms."""
        prior = parse_numbers(state["prior"], n_terms)
        if min(prior) <= 0:
            raise ValueError("a prior must be more than zero")
        curve = cls(prior)
        curve._a = [parse_numbers(row, n_terms) for row in state["a"]]
        curve._b = parse_numbers(state["b"], n_terms)
        if len(curve._a) != n_terms:
            raise ValueError(f"expected {n_terms} rows")
        curve._solve()
        return curve


@dataclass
class RecentPace:
    """Seconds met over seconds expected, the last second counting most."""

    met_s: float = 0.0
    expected_s: float = 0.0

    @property
    def ratio(self) -> float:
        # One expected half-life of "as expected" keeps the first observations from ruling.
        weight = 0.25 * _PACE_HALF_LIFE_S
        return (self.met_s + weight) / (self.expected_s + weight)

    def restart(self, ratio: float) -> None:
        """Forget everything but that it is `ratio` now."""
        self.expected_s = 0.5 * _PACE_HALF_LIFE_S
        self.met_s = min(max(ratio, 1 / _PACE_CLIP), _PACE_CLIP) * self.expected_s

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
        """Factors for the low and high bound. The prior's bound stands beside few observations."""
        n = len(self.values)
        fade = self.prior_bound * max(0.0, 1 - n / 12)
        low, high = -fade, fade
        if n:
            ordered = sorted(self.values)
            # The rank is rounded outwards: with n values, 1/(n+1) of what comes lies beyond.
            low = min(low, ordered[max(0, math.floor(_LOW * (n + 1)) - 1)])
            high = max(high, ordered[min(n - 1, math.ceil(_HIGH * (n + 1)) - 1)])
        return (math.exp(min(low, -_NARROWEST)), math.exp(max(high, _NARROWEST)))


@dataclass
class Rate:
    """What is known of one kind of work: curve, pace of the moment, errors of predictions."""

    curve: Curve
    off: Residuals
    pace: RecentPace = field(default_factory=RecentPace)

    def predict(self, terms: Sequence[float]) -> tuple[float, float, float]:
        mid = self.curve.predict(terms) * self.pace.ratio
        low, high = self.off.factors()
        return mid * low, mid, mid * high

    def observe(
        self, terms: Sequence[float], seconds: float, *, n: int = 1, is_bound: bool = True
    ) -> None:
        """Take in that `n` times `terms` took `seconds`. `is_bound`: bounds learn from it too."""
        expected = self.curve.predict(terms)
        predicted = expected * self.pace.ratio
        if is_bound:
            self.off.add(seconds / n, predicted)
        self.pace.observe(seconds, expected * n)
        # An outlier teaches the curve no more than that it was four times off.
        self.curve.observe(terms, min(max(seconds / n, predicted / 4), predicted * 4))

    def scale(self, factor: float, bound: float) -> Rate:
        """A first guess for work that takes a multiple of this."""
        weights = [max(weight, 1e-12) * factor for weight in self.curve.weights]
        return Rate(Curve(weights), Residuals(bound))


def parse_numbers(values: Iterable[Any], n: int | None = None) -> list[float]:
    """Finite floats from anything; `n` of them, if given. Raises ValueError or TypeError."""
    found = [float(value) for value in values]
    if not all(math.isfinite(value) for value in found) or (n is not None and len(found) != n):
        raise ValueError(f"expected {'finite' if n is None else n} numbers")
    return found


def _solve_non_negative(a: Sequence[Sequence[float]], b: Sequence[float]) -> list[float]:
    """Solution of the normal equations; weights that come out negative are fixed at zero."""
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
    """Gaussian elimination; rows are scaled, as terms differ by many powers of ten."""
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
