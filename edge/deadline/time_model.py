"""Predict the time of a prefill and of a token on this board, with bounds; every request corrects
it.

    prefill(n, past) = call + n · token + n · (past + n/2) · depth         compute-bound
    decode(depth)    =        token         +            depth · depth     bandwidth-bound

The constants of a curve start from the plan and are fitted by least squares of the relative error
with slow forgetting. A pace, the ratio of seconds met to seconds expected of late, follows heat and
other processes. Bounds are quantiles of earlier errors. A request right after loading is cold: its
pages may still be in storage, so it teaches only what being cold costs.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from boardfit.edge.deadline.curve import Curve, Rate, RecentPace, Residuals, parse_numbers
from boardfit.edge.errors import InputError

SCHEMA = 2

# What a plan's figures are trusted to before anything was measured, where it does not say.
_PRIOR_BOUND = 0.6
# What is guessed from another number of threads.
_OTHER_THREADS_BOUND = 0.5
_MOST_THREAD_COUNTS = 64
# What stopping a running step may take: the engine looks every 10 ms, and a node has to end.
_STOP_S, _STOP_MOST_S = 0.015, 0.25
# From the last token to the caller: ending the stream, bookkeeping.
_TAIL_S, _TAIL_MOST_S = 0.002, 0.1
_N_LATEST, _LATE_QUANTILE = 32, 0.9
# Expected tokens of an unshortened answer before the first one, and the rate of adaptation.
_USUAL_ANSWER, _ANSWER_STEP = 100.0, 0.1


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
    """Rates before the first request, in tokens per second with an empty context, and a bound."""

    prefill_tps: float
    decode_tps: float
    bound: float = _PRIOR_BOUND

    def __post_init__(self) -> None:
        for name in ("prefill_tps", "decode_tps", "bound"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and more than zero, got {value}")


@dataclass
class _Speeds:
    prefill: Rate
    decode: Rate

    @classmethod
    def from_prior(cls, prior: Prior) -> _Speeds:
        token_s, out_s = 1 / prior.prefill_tps, 1 / prior.decode_tps
        # Before it is measured: attention doubles a token's cost some thousands of tokens deep.
        return cls(
            Rate(Curve((out_s, token_s, token_s / 6000)), Residuals(prior.bound)),
            Rate(Curve((out_s, out_s / 6000)), Residuals(prior.bound)),
        )

    def state(self) -> dict[str, Any]:
        rates = (("prefill", self.prefill), ("decode", self.decode))
        curves = {name: rate.curve.state() for name, rate in rates}
        return {**curves, **{f"{name}_off": list(rate.off.values) for name, rate in rates}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], bound: float) -> _Speeds:
        rates = []
        for name, n_terms in (("prefill", 3), ("decode", 2)):
            rates.append(Rate(Curve.from_state(state[name], n_terms), Residuals(bound)))
            rates[-1].off.values.extend(parse_numbers(state[f"{name}_off"]))
        return cls(*rates)


class TimeModel:
    """Predicts and learns, for each number of threads that computes; it has no clock of its own."""

    def __init__(self, prior: Prior) -> None:
        self._now = _Speeds.from_prior(prior)
        self._n_threads = 0
        self._by_threads = {0: self._now}
        self._cold_s = 0.0
        self._stops: deque[float] = deque(maxlen=_N_LATEST)
        self._tails: deque[float] = deque(maxlen=_N_LATEST)
        self.usual_answer = _USUAL_ANSWER
        self.n_requests = 0

    def use_threads(self, n: int) -> None:
        """Predict and learn for `n` computing threads from now on. A number not met yet is
        guessed from the nearest: prefill scales with threads, decode with their square root.
        """
        if n == self._n_threads:
            return
        if 0 in self._by_threads:  # the state before the first `use_threads`
            self._by_threads[n] = self._by_threads.pop(0)
        elif n not in self._by_threads:
            near = min(self._by_threads, key=lambda k: abs(k - n))
            share, guess = near / n, self._by_threads[near]
            self._by_threads[n] = _Speeds(
                guess.prefill.scale(share, _OTHER_THREADS_BOUND),
                guess.decode.scale(math.sqrt(share), _OTHER_THREADS_BOUND),
            )
        self._n_threads, self._now = n, self._by_threads[n]

    def prefill(self, n_new: int, n_past: int = 0, *, cold: bool = False) -> Span:
        low, mid, high = self._now.prefill.predict(_prefill_terms(n_new, n_past))
        extra = self._cold_s if cold else 0.0
        return Span(low, mid + extra / 2, high + extra)

    def token(self, depth: int) -> Span:
        return Span(*self._now.decode.predict((1.0, float(depth))))

    def decode(self, n: int, depth: int) -> Span:
        one = self.token(depth + n // 2)
        return Span(n * one.low, n * one.mid, n * one.high)

    def prefill_tokens(self, seconds: float, n_past: int = 0, *, cold: bool = False) -> int:
        """Most new tokens whose prefill stays within `seconds` at its high bound; 0 if none."""
        found = bisect.bisect_right(
            range(1 << 22), seconds, key=lambda n: self.prefill(n, n_past, cold=cold).high
        )
        return max(0, found - 1)

    @property
    def stop_s(self) -> float:
        return min(max(_STOP_S, _high_quantile(self._stops)), _STOP_MOST_S)

    @property
    def tail_s(self) -> float:
        """Seconds from the last token to the caller."""
        return min(max(_TAIL_S, _high_quantile(self._tails)), _TAIL_MOST_S)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Predict for the machine's long-run speed within the block."""
        prefill, decode = self._now.prefill, self._now.decode
        paces = prefill.pace, decode.pace
        prefill.pace, decode.pace = RecentPace(), RecentPace()
        try:
            yield
        finally:
            prefill.pace, decode.pace = paces

    def observe_prefill(
        self, n_new: int, n_past: int, seconds: float, *, cold: bool = False
    ) -> None:
        if n_new <= 0 or not _is_time(seconds):
            return
        terms = _prefill_terms(n_new, n_past)
        if cold:
            predicted = self._now.prefill.predict(terms)[1]
            self._cold_s += 0.5 * (max(0.0, seconds - predicted) - self._cold_s)
            return
        self._now.prefill.observe(terms, seconds)
        self.n_requests += 1

    def observe_cut_prefill(
        self, n_new: int, n_past: int, seconds: float, *, cold: bool = False
    ) -> None:
        """A prefill was stopped after `seconds`: it counts only if that is more than expected."""
        if n_new > 0 and _is_time(seconds) and seconds > self.prefill(n_new, n_past).mid:
            self.observe_prefill(n_new, n_past, seconds, cold=cold)

    def observe_decode(self, n: int, depth: int, seconds: float) -> None:
        """`n` tokens from `depth` on took `seconds` in all."""
        if n > 0 and _is_time(seconds):
            # Single tokens scatter too much to bound an answer by.
            self._now.decode.observe((1.0, depth + n / 2), seconds, n=n, is_bound=n >= 4)

    def restart_pace(self, n_new: int, n_past: int, seconds: float) -> None:
        """Forget what slowed earlier requests, and take the speed of this short prefill instead."""
        if n_new > 0 and _is_time(seconds):
            ratio = seconds / self._now.prefill.curve.predict(_prefill_terms(n_new, n_past))
            self._now.prefill.pace.restart(ratio)
            self._now.decode.pace.restart(ratio)

    def observe_stop(self, seconds: float) -> None:
        if _is_time(seconds):
            self._stops.append(seconds)

    def observe_tail(self, seconds: float) -> None:
        """An answer was with its caller `seconds` after its last token."""
        if _is_time(seconds):
            self._tails.append(seconds)

    def observe_answer(self, n: int, *, whole: bool) -> None:
        """An answer of `n` tokens ended by itself, or (not `whole`) was ended for time."""
        if whole or n > self.usual_answer:
            self.usual_answer += _ANSWER_STEP * (n - self.usual_answer)

    def to_dict(self) -> dict[str, Any]:
        """Everything learned, as plain data. The pace is left out: it is of the moment."""
        return {
            "schema": SCHEMA,
            "threads": {str(n): speeds.state() for n, speeds in self._by_threads.items()},
            "n_threads": self._n_threads,
            "cold_s": self._cold_s,
            "stops": list(self._stops),
            "tails": list(self._tails),
            "usual_answer": self.usual_answer,
            "n_requests": self.n_requests,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], prior: Prior) -> TimeModel:
        """Inverse of `to_dict`. Raises InputError for anything else."""
        try:
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r:.20}, this version reads {SCHEMA}")
            model = cls(prior)
            stored = {int(n): state for n, state in data["threads"].items()}
            if len(stored) > _MOST_THREAD_COUNTS or any(n < 0 for n in stored):
                raise ValueError("numbers of threads")
            model._by_threads = {
                n: _Speeds.from_state(state, prior.bound) for n, state in stored.items()
            }
            model._n_threads = int(data["n_threads"])
            model._now = model._by_threads[model._n_threads]
            (model._cold_s,) = parse_numbers([data["cold_s"]])
            model._cold_s = max(0.0, model._cold_s)
            model._stops.extend(parse_numbers(data["stops"]))
            model._tails.extend(parse_numbers(data["tails"]))
            (model.usual_answer,) = parse_numbers([data["usual_answer"]])
            model.n_requests = int(data["n_requests"])
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise InputError(f"not a stored time model: {error}") from None
        return model


def _prefill_terms(n_new: int, n_past: int) -> tuple[float, float, float]:
    return (1.0, float(n_new), n_new * (n_past + n_new / 2))


def _high_quantile(seconds: Sequence[float]) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(_LATE_QUANTILE * len(ordered)))] if ordered else 0.0


def _is_time(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds > 0
