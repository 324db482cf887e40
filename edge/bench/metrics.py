"""Figures from a trace, and statistics over repetitions. Pure functions; a broken trace is refused.

prefill_tps = (n_prompt − n_reused) / prefill_s
decode_tps  = (n_out − 1) / (t_last − t_first)     the first token belongs to the prefill
ttft_s      = t_first − request start               tokenization and sampling included
j_per_token = mean power × request seconds / n_out  prefill and idle power included
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from boardfit.edge.errors import InputError
from boardfit.edge.types import MemorySample, Trace

# Figures of one request or load; times in seconds, rates in tokens per second, None: not measured.
Figures = dict[str, Any]
# One figure over repetitions.
Spread = dict[str, Any]

NS = 1e-9
MIN_POWER_SAMPLES = 3
MEMORY_KINDS = ("anon", "file", "rss", "pss")
# Of a sustained run the first and the last tenth of the time are compared, each at least this many
# repetitions.
SHARE, MIN_REPEATS = 0.1, 2


@dataclass(frozen=True)
class LoadTrace:
    """One opening of an engine and its first token, as raw monotonic nanoseconds."""

    start_ns: int
    loaded_ns: int
    first_token_ns: int
    memory: tuple[MemorySample, ...] = ()


def measure_load(trace: LoadTrace) -> Figures:
    """Figures of one load. Raises InputError when its clock goes backwards."""
    if not trace.start_ns <= trace.loaded_ns <= trace.first_token_ns:
        raise InputError("trace refused: the clock of a load goes backwards")
    return {
        "load_s": (trace.loaded_ns - trace.start_ns) * NS,
        "load_to_first_token_s": (trace.first_token_ns - trace.start_ns) * NS,
        "peak_anon_bytes": peak(trace.memory, "anon_bytes"),
        "peak_rss_bytes": peak(trace.memory, "rss_bytes"),
    }


def numbers(figures: Figures) -> Figures:
    """The figures of one request that have a spread: all but the yes-or-no ones."""
    return {name: value for name, value in figures.items() if not isinstance(value, bool)}


def check_trace(trace: Trace) -> None:
    """Raise InputError when the clock of a trace goes backwards or its counts cannot be."""
    times = [trace.request_start_ns, trace.prefill_end_ns, *(event.t_ns for event in trace.events)]
    check_order([*(t for t in times if t is not None), trace.request_end_ns])
    if not 0 <= trace.n_reused <= trace.n_prompt:
        raise InputError(
            f"trace refused: {trace.n_reused} of {trace.n_prompt} prompt tokens reused"
        )


def check_order(times_ns: Sequence[int]) -> None:
    """Raise InputError when a clock goes backwards."""
    for before, after in pairwise(times_ns):
        if after < before:
            raise InputError(
                f"trace refused: its clock goes backwards by {before - after} ns; "
                "a result needs monotonic timestamps"
            )


def quantile(values: Sequence[float], q: float) -> float:
    """Linear-interpolated quantile (type 7 of Hyndman and Fan). Raises ValueError on no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(values: Sequence[float]) -> Spread | None:
    """Statistics over repetitions, None without any. `stdev` is the sample's."""
    if not values:
        return None
    return {
        "n": len(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "minimum": min(values),
        "maximum": max(values),
        "p10": quantile(values, 0.1),
        "p90": quantile(values, 0.9),
        "stdev": statistics.stdev(values) if len(values) > 1 else None,
    }


def spreads(figures: Sequence[Mapping[str, float | None]]) -> dict[str, Spread | None]:
    """The spread of every figure over the repetitions in which it was measured."""
    names = dict.fromkeys(name for repetition in figures for name in repetition)
    return {
        name: spread([value for f in figures if (value := f.get(name)) is not None])
        for name in names
    }


def peak(samples: Sequence[MemorySample], field: str) -> int | None:
    """Largest value of one kind of memory, None where it was never measured."""
    values = (getattr(sample, field) for sample in samples)
    return max((value for value in values if value is not None), default=None)


def measure(trace: Trace) -> Figures:
    """All figures of one request. Raises InputError when the trace is broken."""
    check_trace(trace)
    tokens = [event.t_ns for event in trace.events if event.token_id is not None]
    gaps = [(after - before) * NS for before, after in pairwise(tokens)]
    decode_s = sum(gaps)
    prefill_s = None
    if trace.prefill_end_ns is not None:
        prefill_s = (trace.prefill_end_ns - trace.request_start_ns) * NS
    n_new = trace.n_prompt - trace.n_reused
    swaps = [s.swap_bytes for s in trace.memory if s.swap_bytes is not None]
    end_to_end_s = (trace.request_end_ns - trace.request_start_ns) * NS
    watts = [h.power_w for h in trace.heat if h.power_w is not None]
    # Sensors are read once a second: fewer looks than these are not this request's power.
    power_w = statistics.fmean(watts) if len(watts) >= MIN_POWER_SAMPLES else None
    return {
        "n_prompt": trace.n_prompt,
        "n_reused": trace.n_reused,
        "n_out": len(tokens),
        "ttft_s": (tokens[0] - trace.request_start_ns) * NS if tokens else None,
        "prefill_s": prefill_s,
        "prefill_tps": n_new / prefill_s if prefill_s and n_new else None,
        "decode_tps": len(gaps) / decode_s if decode_s else None,
        "tpot_s": decode_s / len(gaps) if gaps else None,
        "itl_p50_s": quantile(gaps, 0.5) if gaps else None,
        "itl_p95_s": quantile(gaps, 0.95) if gaps else None,
        "itl_max_s": max(gaps) if gaps else None,
        "end_to_end_s": end_to_end_s,
        **{f"peak_{kind}_bytes": peak(trace.memory, f"{kind}_bytes") for kind in MEMORY_KINDS},
        "swap_grown_bytes": swaps[-1] - swaps[0] if swaps else None,
        "power_w": power_w,
        "j_per_token": power_w * end_to_end_s / len(tokens) if power_w and tokens else None,
        "deadline_met": None if trace.deadline_s is None else end_to_end_s <= trace.deadline_s,
    }


def drift(values: Sequence[float]) -> float | None:
    """Median of the second half over that of the first, minus 1; None below four repetitions."""
    if len(values) < 4:
        return None
    half = len(values) // 2
    first, second = statistics.median(values[:half]), statistics.median(values[-half:])
    return second / first - 1 if first else None


def sustained_ratio(points: Sequence[tuple[float, float]]) -> float | None:
    """Median rate of the last tenth of the time over that of the first; `points` are (seconds,
    rate) in the order of time. None below four of them.
    """
    if len(points) < 2 * MIN_REPEATS:
        return None
    span = points[-1][0] - points[0][0]
    first = [rate for t, rate in points if t - points[0][0] <= SHARE * span]
    last = [rate for t, rate in points if points[-1][0] - t <= SHARE * span]
    first = first if len(first) >= MIN_REPEATS else [rate for _, rate in points[:MIN_REPEATS]]
    last = last if len(last) >= MIN_REPEATS else [rate for _, rate in points[-MIN_REPEATS:]]
    burst = statistics.median(first)
    return statistics.median(last) / burst if burst else None
