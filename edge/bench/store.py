"""Results as JSON Lines: one line per test, versioned, with everything needed to repeat it.

The schema is described in `docs/result-schema.md`. Readers refuse lines of a version that they do
not know and say which line is broken; a line cut short by a power cut is the only damage that is
skipped, with a note.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from boardfit.edge.bench.record_schema import check_entries
from boardfit.edge.bench.trace_rows import check_trace
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.disk.rooted import open_to_append
from boardfit.edge.errors import InputError
from boardfit.edge.fields import read_finite, refuse_constant
from boardfit.edge.units import printable

SCHEMA = 2
READS = (1, 2)  # 1: no digest, no times between traces, loads without a trace
KIND = "boardfit-result"
MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_FILE_BYTES = 1024 * 1024 * 1024
DIGEST = "digest"
# Lines that a page reads: some hundred runs. Also what is read of one run that has more.
MAX_LINES = 2000

_RUN, _TIME = b'"run_id": "', b'"time": "'
_MAX_VALUE = 100


@dataclass(frozen=True)
class Results:
    """Records, and notes on what could not be read. Of runs in `partial` some tests were not."""

    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    partial: frozenset[str] = frozenset()


def data_directory() -> Path:
    """Where results are kept: the user's data folder (XDG_DATA_HOME), boardfit/results."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(base) / "boardfit/results"


def find_month_file() -> Path:
    """Where the results of this month are kept."""
    return data_directory() / f"{datetime.now(timezone.utc):%Y-%m}.jsonl"


def append_results(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records as whole lines, fsynced. Raises ValueError on NaN or infinity in a record."""
    made = [sealed({"kind": KIND, "schema": SCHEMA, **record}) for record in records]
    lines = [json.dumps(record, allow_nan=False, sort_keys=True) + "\n" for record in made]
    append_lines(path, "".join(lines).encode())


def append_lines(path: Path, lines: bytes) -> None:
    """Append whole lines as they are (another machine's results, sealed there), fsynced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = lines if lines.endswith(b"\n") or not lines else lines + b"\n"
    with open_to_append(path) as file:
        size = file.tell()
        file.seek(-1 if size else 0, os.SEEK_END)
        if size and file.read(1) != b"\n":
            whole = b"\n" + whole  # a run was cut off here: its half line stays alone
        try:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:  # a full disk: no half line stays
            with contextlib.suppress(OSError, ValueError):
                os.ftruncate(file.fileno(), size)
            error.filename = str(path)
            raise


def read_results(paths: Iterable[Path], most: int | None = None) -> Results:
    """Read and check result files. Raises InputError that names file, line and what is wrong."""
    return joined([parse_results(path, read_file(path), most) for path in paths])


def joined(found: Sequence[Results]) -> Results:
    """Several files' results as one."""
    return Results(
        tuple(record for results in found for record in results.records),
        tuple(note for results in found for note in results.notes),
        frozenset[str]().union(*(results.partial for results in found)),
    )


def read_file(path: Path) -> bytes:
    """The bytes of a result file. Raises InputError for a pipe, a device or a larger file."""
    try:
        return OpenedFile.open(path).read(MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(f"cannot read results: {error}") from None


def parse_results(path: Path, data: bytes, most: int | None = None) -> Results:
    """The records in a file's bytes, checked. Of a file of more than `most` lines only the newest
    runs are parsed, with a note that says so. Raises InputError.
    """
    records, notes, partial = [], [], frozenset[str]()
    spans = line_spans(data)
    chosen: Iterable[int] = range(len(spans))
    if most is not None and len(spans) > most + 1:
        newest = find_newest(data, spans, most)
        chosen = newest.lines
        if newest.n_taken < newest.n_runs or newest.cut_run is not None:
            notes.append(
                f"{path.name} holds {newest.n_tests:,} tests of {newest.n_runs:,} run(s); shown "
                f"are {len(chosen):,} of the newest {newest.n_taken:,}. --format json has them all"
            )
        partial = frozenset([newest.cut_run] if newest.cut_run else [])
    for i in chosen:
        number, line = i + 1, data[slice(*spans[i])]
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{where}: a line of {len(line)} bytes is not a result")
        try:
            record = json.loads(line, parse_constant=refuse_constant, parse_float=read_finite)
        except (ValueError, RecursionError) as error:
            rest = data[spans[i][1] :].strip() if i >= len(spans) - 2 else b"more"
            if not rest:
                notes.append(f"{where}: the last line is cut short and was left out")
                continue
            raise InputError(f"{where}: not JSON: {error}") from None
        records.append(check_record(record, where))
    return Results(tuple(records), tuple(notes), partial)


def check_record(record: Any, where: str) -> dict[str, Any]:
    """A record with the right kind, version and entries. Raises InputError otherwise."""
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise InputError(f"{where}: not a boardfit result")
    if record.get("schema") not in READS:
        raise InputError(
            f"{where}: result schema {printable(repr(record.get('schema')), 40)}, this boardfit "
            f"reads {' and '.join(map(str, READS))}",
            next_step="report it with the boardfit version that made it",
        )
    check_entries(record, where)
    check_traces(record.get("traces", []), where)
    return record


def check_traces(traces: Any, where: str) -> None:
    """Raise InputError where a trace is no object, or its clock or a reading is wrong."""
    if not isinstance(traces, list):
        raise InputError(f"{where}: entry 'traces' must be a list")
    for number, trace in enumerate(traces, 1):
        if not isinstance(trace, dict):
            raise InputError(f"{where}: trace {number} must be an object")
        try:
            check_trace(trace)
        except InputError as error:
            raise InputError(f"{where}: trace {number}: {error}") from None


# ---- seals: SHA-256 over a record's canonical JSON without the entry itself ----------------------
# A seal proves that a line is as `edge bench` wrote it, not who wrote it. An editor can compute a
# new one: `edge report --verify` catches that, because it derives every figure from the raw trace.


def canonical(record: Mapping[str, Any]) -> bytes:
    """Bytes that two equal records share. Raises ValueError on NaN or infinity."""
    rest = {key: value for key, value in record.items() if key != DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def digest_of(record: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(canonical(record)).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, DIGEST: digest_of(record)}


# ---- the newest runs of a large file -------------------------------------------------------------
# A line of results is some kilobytes of JSON and takes some 50 µs to parse; a page shows a few runs
# in full. So of a file with many lines only the run's id and time are looked for in each, from the
# line's end, where `edge bench` writes them (keys are sorted).


@dataclass(frozen=True)
class Newest:
    """Indexes of the lines to parse; how many runs and tests there are, and how many runs are
    taken; the run, if any, of which only the first lines are.
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
    """Choose whole runs, newest first, until `most` lines are reached. A line without a run is
    chosen; its parser then reports the fault.
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
