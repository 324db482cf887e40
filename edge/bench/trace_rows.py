"""Traces as they are stored, and back again: `expand_trace(compact_trace(t, origin))` measures
exactly like `t`. What is read is checked: anyone may have written it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.bench.metrics import LoadTrace, check_order
from boardfit.edge.errors import InputError
from boardfit.edge.fields import FieldKind, OrNull, Real, Whole, shown
from boardfit.edge.types import HeatSample, MemorySample, TokenEvent, Trace

# Columns of a stored memory row after its time.
MEMORY_FIELDS = ("rss_bytes", "anon_bytes", "file_bytes", "pss_bytes", "swap_bytes")
# A day in nanoseconds: no request of a benchmark is longer, and floats hold such times exactly.
MAX_NS = 86_400 * 10**9
# A year: the time between the first and the last request of a run is shorter.
MAX_RUN_NS = 366 * MAX_NS
MAX_COUNT = (1 << 63) - 1
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
    deadline_s = _field(stored, "deadline_s")
    return Trace(
        request_start_ns=0,
        n_prompt=_field(stored, "n_prompt"),
        n_reused=_field(stored, "n_reused"),
        prefill_end_ns=_field(stored, "prefill_end_ns"),
        events=tuple(TokenEvent(0, "", t) for t in _token_times(stored.get("token_t_ns"))),
        request_end_ns=_field(stored, "end_ns"),
        memory=expand_memory(stored.get("memory", [])),
        heat=expand_heat(stored.get("heat", [])),
        deadline_s=None if deadline_s is None else float(deadline_s),
    )


def expand_load(stored: Mapping[str, Any]) -> LoadTrace:
    loaded_ns, first_ns = (_field(stored, name) for name in ("loaded_ns", "first_token_ns"))
    return LoadTrace(0, loaded_ns, first_ns, expand_memory(stored.get("memory", [])))


def expand_memory(rows: Any) -> tuple[MemorySample, ...]:
    return tuple(MemorySample(*row) for row in memory_rows(rows))


def memory_rows(rows: Any) -> Sequence[Sequence[Any]]:
    """Stored memory rows `[t_ns, rss, anon, file, pss, swap]`, checked. Raises InputError."""
    return _rows(rows, "memory", OrNull(Whole(0, MAX_COUNT)), 1 + len(MEMORY_FIELDS))


def expand_heat(rows: Any) -> tuple[HeatSample, ...]:
    checked = _rows(rows, "heat", OrNull(Real(-MAX_READING, MAX_READING)), 4, 5)
    return tuple(HeatSample(*row) for row in checked)  # schema 1 had no power


def check_trace(stored: Mapping[str, Any]) -> None:
    """Raise InputError where a stored trace is not as a chart reads it. Memory is checked later."""
    check_clock(stored)
    _field(stored, "start_ns")
    expand_heat(stored.get("heat", []))
    _field(stored, "deadline_s")


def check_clock(stored: Mapping[str, Any]) -> None:
    """Raise InputError where the times of a stored request or load are not in order."""
    if "loaded_ns" in stored:
        times = [_field(stored, "loaded_ns"), _field(stored, "first_token_ns")]
    else:
        prefill_end = _field(stored, "prefill_end_ns")
        times = [] if prefill_end is None else [prefill_end]
        times += [*_token_times(stored.get("token_t_ns", [])), _field(stored, "end_ns")]
    check_order([0, *times])


_SINCE_START = "nanoseconds since the request's start"
_TIME, _COUNT = (Whole(0, MAX_NS), _SINCE_START), (Whole(0, MAX_COUNT), "a count")
_FIELDS: Mapping[str, tuple[FieldKind, str]] = {
    **dict.fromkeys(("end_ns", "loaded_ns", "first_token_ns"), _TIME),
    **dict.fromkeys(("n_prompt", "n_reused"), _COUNT),
    "prefill_end_ns": (OrNull(_TIME[0]), _SINCE_START),
    "start_ns": (OrNull(Whole(-MAX_RUN_NS, MAX_RUN_NS)), "nanoseconds"),
    "deadline_s": (OrNull(Real(0, MAX_NS / 1e9)), "seconds"),
}


def _field(stored: Mapping[str, Any], name: str) -> Any:
    kind, what = _FIELDS[name]
    return _check(stored.get(name), kind, name, what)


def _check(value: Any, kind: FieldKind, name: str, what: str) -> Any:
    if not kind.accepts(value):
        raise InputError(f"trace refused: {name!r} must be {what}, got {shown(value)}")
    return value


def _token_times(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise InputError("trace refused: 'token_t_ns' must be a list")
    return [_check(t_ns, _TIME[0], "token_t_ns", _SINCE_START) for t_ns in value]


def _rows(value: Any, name: str, kind: FieldKind, *widths: int) -> Sequence[Sequence[Any]]:
    """Rows of a time and readings. A sample may lie shortly before its request."""
    if not isinstance(value, list) or not all(
        isinstance(row, list) and len(row) in widths for row in value
    ):
        raise InputError(f"trace refused: {name!r} must be rows of {widths[-1]} values")
    for t_ns, *readings in value:
        if not Whole(-MAX_NS, MAX_NS).accepts(t_ns):
            raise InputError(f"trace refused: a sample at {shown(t_ns)} ns")
        for reading in readings:
            if not kind.accepts(reading):
                raise InputError(f"trace refused: a {name} sample holds {shown(reading)}")
    return value
