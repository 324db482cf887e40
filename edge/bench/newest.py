"""The newest runs of a large file of results, found without parsing the rest.

A line of results is some kilobytes of JSON and takes some 50 µs to parse; a page shows a few runs
in full. So of a file with many lines only the run's id and time are looked for in each, from the
line's end, where `edge bench` writes them (keys are sorted), and the lines of the newest runs are
parsed and checked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

# Lines that a page reads: some hundred runs. Also what is read of one run that has more.
MAX_LINES = 2000

_RUN, _TIME = b'"run_id": "', b'"time": "'
_MAX_VALUE = 100


@dataclass(frozen=True)
class Newest:
    """Indexes of the lines to parse, in their order; how many runs and tests there are, and how
    many runs of them are taken; the run, if any, of which only the first lines are.
    """

    lines: tuple[int, ...]
    n_runs: int
    n_tests: int
    n_taken: int
    cut_run: str | None


def line_spans(data: bytes) -> list[tuple[int, int]]:
    """Where the lines of a file begin and end, the newline left out; the last may be empty."""
    spans, start = [], 0
    while (end := data.find(b"\n", start)) >= 0:
        spans.append((start, end))
        start = end + 1
    return [*spans, (start, len(data))]


def find_newest(data: bytes, spans: Sequence[tuple[int, int]], most: int = MAX_LINES) -> Newest:
    """Choose whole runs, newest first, until `most` lines are reached; at least one run, and of
    that no more than `most` lines. A line without a run is chosen; its parser then reports the
    fault.
    """
    runs: dict[str, list[int]] = {}
    times: dict[str, str] = {}
    odd, n_tests = [], 0
    for i, span in enumerate(spans):
        if span[0] == span[1]:
            continue
        found = run_and_time(data, span)
        if found is None:
            odd.append(i)
            continue
        n_tests += 1
        run, time = found
        runs.setdefault(run, []).append(i)
        times[run] = max(times.get(run, ""), time)
    chosen: list[int] = []
    n_taken, cut_run = 0, None
    for run in sorted(runs, key=times.__getitem__, reverse=True):
        if n_taken and len(chosen) + len(runs[run]) > most:
            break
        cut_run = run if len(runs[run]) > most else None
        chosen += runs[run][:most]
        n_taken += 1
    taken = tuple(sorted([*chosen, *odd[: most + 1]]))
    return Newest(taken, len(runs), n_tests, n_taken, cut_run)


def run_and_time(data: bytes, span: tuple[int, int]) -> tuple[str, str] | None:
    """A line's run id and time, None where it has none. What else is called so in it can only move
    the line to another run's place in the order: the record itself is read after that.
    """
    run, time = _last_value(data, span, _RUN), _last_value(data, span, _TIME)
    if run is not None and time is not None:
        return run, time
    try:
        record = json.loads(data[slice(*span)])
        return str(record["run_id"]), str(record["time"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _last_value(data: bytes, span: tuple[int, int], key: bytes) -> str | None:
    """The text behind the last such key, None where it is not plain."""
    start = data.rfind(key, *span)
    if start < 0:
        return None
    start += len(key)
    end = data.find(b'"', start, min(span[1], start + _MAX_VALUE))
    value = data[start:end] if end >= 0 else b"\\"
    return None if b"\\" in value else value.decode("utf-8", "replace")
