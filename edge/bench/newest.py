"""The newest runs of a large file of results, found without parsing the rest.

A line of results is some kilobytes of JSON and takes some 50 µs to parse; a page shows a few runs
in full. So of a file with many lines only the run's id and time are looked for in each (their keys
occur once in a line that `edge bench` wrote), and the lines of the newest runs are parsed and
checked.
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


def find_newest(lines: Sequence[bytes], most: int = MAX_LINES) -> Newest:
    """Choose whole runs, newest first, until `most` lines are reached; at least one run, and of
    that no more than `most` lines. A line that does not tell its run is chosen: whoever parses it
    says what is wrong with it.
    """
    runs: dict[str, list[int]] = {}
    times: dict[str, str] = {}
    odd, n_tests = [], 0
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        found = run_and_time(line)
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


def run_and_time(line: bytes) -> tuple[str, str] | None:
    """A line's run id and time, None where it has none."""
    run, time = _only_value(line, _RUN), _only_value(line, _TIME)
    if run is not None and time is not None:
        return run, time
    try:
        record = json.loads(line)
        return str(record["run_id"]), str(record["time"])
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def _only_value(line: bytes, key: bytes) -> str | None:
    """The text behind a key that occurs once and whose value has no escapes. Inside of a string a
    quotation mark stands behind a backslash, so that no text can look like a key.
    """
    start = line.find(key)
    if start < 0 or line.find(key, start + 1) >= 0:
        return None
    start += len(key)
    end = line.find(b'"', start, start + _MAX_VALUE)
    value = line[start:end] if end >= 0 else b"\\"
    return None if b"\\" in value else value.decode("utf-8", "replace")
