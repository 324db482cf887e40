"""Traces as they are stored, and back again: `expand_trace(compact_trace(t, origin))` measures
exactly like `t`. What is read is checked: anyone may have written it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.bench.metrics import LoadTrace, check_order
from boardfit.edge.errors import InputError
from boardfit.edge.fields import Whole, is_finite, shown
from boardfit.edge.types import HeatSample, MemorySample, TokenEvent, Trace

# Columns of a stored memory row after its time.
MEMORY_FIELDS = ("rss_bytes", "anon_bytes", "file_bytes", "pss_bytes", "swap_bytes")
# A day in nanoseconds: no request of a benchmark is longer, and floats hold such times exactly.
MAX_NS = 86_400 * 10**9
# A year: the time between the first and the last request of a run is shorter.
MAX_RUN_NS = 366 * MAX_NS
# More than any clock, temperature or bit field of a board reads.
MAX_READING = 1e15


def compact_trace(trace: Trace, origin_ns: int = 0) -> dict[str, Any]:
    """A trace as numbers. `start_ns` is the request's start since `origin_ns` (the start of the
    run); every other time is relative to it.
    """
    start = trace.request_start_ns
    return {
        "start_ns": start - origin_ns,
        "n_prompt": trace.n_prompt,
        "n_reused": trace.n_reused,
        "prefill_end_ns": None if trace.prefill_end_ns is None else trace.prefill_end_ns - start,
        "token_t_ns": [e.t_ns - start for e in trace.events if e.token_id is not None],
        "end_ns": trace.request_end_ns - start,
        "deadline_s": trace.deadline_s,
        "memory": [memory_row(sample, start) for sample in trace.memory],
        "heat": [
            [h.t_ns - start, h.temp_c, h.clock_hz, h.throttled, h.power_w] for h in trace.heat
        ],
    }


def compact_load(trace: LoadTrace, origin_ns: int = 0) -> dict[str, Any]:
    start = trace.start_ns
    return {
        "start_ns": start - origin_ns,
        "loaded_ns": trace.loaded_ns - start,
        "first_token_ns": trace.first_token_ns - start,
        "memory": [memory_row(sample, start) for sample in trace.memory],
    }


def memory_row(sample: MemorySample, start_ns: int) -> list[int | None]:
    return [sample.t_ns - start_ns, *(getattr(sample, name) for name in MEMORY_FIELDS)]


def expand_trace(stored: Mapping[str, Any]) -> Trace:
    """A stored request as a Trace that starts at 0. Raises InputError on anything out of place."""
    tokens = _times(stored.get("token_t_ns"), "token_t_ns")
    prefill_end = stored.get("prefill_end_ns")
    return Trace(
        request_start_ns=0,
        n_prompt=_count(stored.get("n_prompt"), "n_prompt"),
        n_reused=_count(stored.get("n_reused"), "n_reused"),
        prefill_end_ns=None if prefill_end is None else _time(prefill_end, "prefill_end_ns"),
        events=tuple(TokenEvent(0, "", t) for t in tokens),
        request_end_ns=_time(stored.get("end_ns"), "end_ns"),
        memory=expand_memory(stored.get("memory", [])),
        heat=expand_heat(stored.get("heat", [])),
        deadline_s=_seconds(stored.get("deadline_s")),
    )


def expand_load(stored: Mapping[str, Any]) -> LoadTrace:
    return LoadTrace(
        start_ns=0,
        loaded_ns=_time(stored.get("loaded_ns"), "loaded_ns"),
        first_token_ns=_time(stored.get("first_token_ns"), "first_token_ns"),
        memory=expand_memory(stored.get("memory", [])),
    )


def expand_memory(rows: Any) -> tuple[MemorySample, ...]:
    return tuple(MemorySample(*row) for row in memory_rows(rows))


def memory_rows(rows: Any) -> Sequence[Sequence[Any]]:
    """Stored memory rows `[t_ns, rss, anon, file, pss, swap]`, checked. Raises InputError."""
    for row in _rows(rows, "memory", 1 + len(MEMORY_FIELDS)):
        _sample_time(row[0])
        for value in row[1:]:
            if value is not None and (type(value) is not int or not 0 <= value < 2**63):
                raise InputError(f"trace refused: a memory sample holds {shown(value)}")
    return rows  # type: ignore[no-any-return]


def expand_heat(rows: Any) -> tuple[HeatSample, ...]:
    samples = []
    for row in _rows(rows, "heat", 4, 5):  # schema 1 had no power
        for value in row[1:]:
            if value is not None and not (is_finite(value) and abs(value) < MAX_READING):
                raise InputError(f"trace refused: a heat sample holds {shown(value)}")
        samples.append(HeatSample(_sample_time(row[0]), *row[1:]))
    return tuple(samples)


def check_trace(stored: Mapping[str, Any]) -> None:
    """Raise InputError where a stored trace is not as a chart reads it. Memory is checked later."""
    check_clock(stored)
    start = stored.get("start_ns")
    if start is not None and not Whole(-MAX_RUN_NS, MAX_RUN_NS).accepts(start):
        raise InputError(f"trace refused: 'start_ns' must be nanoseconds, got {shown(start)}")
    expand_heat(stored.get("heat", []))
    _seconds(stored.get("deadline_s"))


def check_clock(stored: Mapping[str, Any]) -> None:
    """Raise InputError where the times of a stored request or load are not in order."""
    if "loaded_ns" in stored:
        names = ("loaded_ns", "first_token_ns")
        times = [0, *(_time(stored.get(name), name) for name in names)]
    else:
        prefill_end = stored.get("prefill_end_ns")
        times = [0] if prefill_end is None else [0, _time(prefill_end, "prefill_end_ns")]
        times += _times(stored.get("token_t_ns", []), "token_t_ns")
        times.append(_time(stored.get("end_ns"), "end_ns"))
    check_order(times)


def _rows(value: Any, name: str, *widths: int) -> Sequence[Sequence[Any]]:
    if not isinstance(value, list) or not all(
        isinstance(row, list) and len(row) in widths for row in value
    ):
        raise InputError(f"trace refused: {name!r} must be rows of {widths[-1]} values")
    return value


def _time(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NS:
        raise InputError(
            f"trace refused: {name!r} must be nanoseconds since the request's start, "
            f"got {shown(value)}"
        )
    return value


def _times(value: Any, name: str) -> list[int]:
    if not isinstance(value, list):
        raise InputError(f"trace refused: {name!r} must be a list")
    return [_time(t, name) for t in value]


def _sample_time(value: Any) -> int:
    """Like `_time`, but a sample may lie shortly before its request."""
    if type(value) is not int or abs(value) > MAX_NS:
        raise InputError(f"trace refused: a sample at {shown(value)} ns")
    return value


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not is_finite(value) or not 0 <= value <= MAX_NS / 1e9:
        raise InputError(f"trace refused: 'deadline_s' must be seconds, got {shown(value)}")
    return float(value)


def _count(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise InputError(f"trace refused: {name!r} must be a count, got {shown(value)}")
    return value
