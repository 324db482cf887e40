"""Traces as they are stored, and back again: `expand_trace(compact_trace(t, origin))` measures
exactly like `t`. What is read is checked: anyone may have written it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.bench.metrics import LoadTrace, check_order
from boardfit.edge.errors import InputError
from boardfit.edge.fields import FieldKind, ListOf, OrNull, Real, Schema, Whole, check_fields, shown
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


_TIME, _COUNT = Whole(0, MAX_NS), Whole(0, MAX_COUNT)
_REQUEST: Schema = {
    "start_ns": OrNull(Whole(-MAX_RUN_NS, MAX_RUN_NS)),
    "n_prompt": _COUNT,
    "n_reused": _COUNT,
    "prefill_end_ns": OrNull(_TIME),
    "token_t_ns": ListOf(_TIME, 10_000_000),
    "end_ns": _TIME,
    "deadline_s": OrNull(Real(0, MAX_NS / 1e9)),
}
_LOAD: Schema = {"start_ns": _REQUEST["start_ns"], "loaded_ns": _TIME, "first_token_ns": _TIME}


def _check(stored: Mapping[str, Any], schema: Schema, *optional: str) -> None:
    required = frozenset(schema).difference(("start_ns", "deadline_s", *optional))
    check_fields(stored, schema, "trace refused", required=required, others=True)


def expand_trace(stored: Mapping[str, Any]) -> Trace:
    """A stored request as a Trace that starts at 0. Raises InputError on anything out of place."""
    _check(stored, _REQUEST, "prefill_end_ns")
    deadline_s = stored.get("deadline_s")
    return Trace(
        request_start_ns=0,
        n_prompt=stored["n_prompt"],
        n_reused=stored["n_reused"],
        prefill_end_ns=stored.get("prefill_end_ns"),
        events=tuple(TokenEvent(0, "", t) for t in stored["token_t_ns"]),
        request_end_ns=stored["end_ns"],
        memory=expand_memory(stored.get("memory", [])),
        heat=expand_heat(stored.get("heat", [])),
        deadline_s=None if deadline_s is None else float(deadline_s),
    )


def expand_load(stored: Mapping[str, Any]) -> LoadTrace:
    _check(stored, _LOAD)
    memory = expand_memory(stored.get("memory", []))
    return LoadTrace(0, stored["loaded_ns"], stored["first_token_ns"], memory)


def expand_memory(rows: Any) -> tuple[MemorySample, ...]:
    return tuple(MemorySample(*row) for row in memory_rows(rows))


def memory_rows(rows: Any) -> Sequence[Sequence[Any]]:
    """Stored memory rows `[t_ns, rss, anon, file, pss, swap]`, checked. Raises InputError."""
    return _rows(rows, "memory", OrNull(Whole(0, MAX_COUNT)), 1 + len(MEMORY_FIELDS))


def expand_heat(rows: Any) -> tuple[HeatSample, ...]:
    checked = _rows(rows, "heat", OrNull(Real(-MAX_READING, MAX_READING)), 4, 5)
    return tuple(HeatSample(*row) for row in checked)  # schema 1 had no power


def check_trace(stored: Mapping[str, Any]) -> None:
    """Raise InputError where a stored request or load is not as a chart reads it: an entry, or the
    order of its times. Sizes and memory are checked later.
    """
    if "loaded_ns" in stored:
        _check(stored, _LOAD)
        check_order([0, stored["loaded_ns"], stored["first_token_ns"]])
        return
    _check(stored, _REQUEST, "n_prompt", "n_reused", "prefill_end_ns", "token_t_ns")
    begin = stored.get("prefill_end_ns") or 0
    check_order([0, begin, *stored.get("token_t_ns", []), stored["end_ns"]])
    expand_heat(stored.get("heat", []))


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
