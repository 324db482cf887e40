"""Verify a stored result: its digest, and every figure derived again from the raw trace."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boardfit.edge.bench.deadline_summary import by_task, summarize
from boardfit.edge.bench.metrics import measure, measure_load, numbers, spreads
from boardfit.edge.bench.store import DIGEST, digest_of
from boardfit.edge.bench.trace_rows import expand_load, expand_trace
from boardfit.edge.errors import InputError
from boardfit.edge.report.figures import Record, Run, name_test
from boardfit.edge.units import printable

# A spread is summed in floating point, whose last bit differs between Python versions; the figures
# themselves come from whole nanoseconds and must be equal to the last bit.
SPREAD_TOLERANCE = 1e-12


@dataclass(frozen=True)
class RunVerdict:
    """What checking found: `problems` break trust, `gaps` could not be checked."""

    n_records: int
    n_figures: int
    problems: tuple[str, ...]
    gaps: tuple[str, ...]

    @property
    def text(self) -> str:
        if self.problems:
            return f"{len(self.problems)} problem(s): these results are not as they were measured"
        checked = f"{self.n_figures:,} figures of {self.n_records} tests derived again, all equal"
        return checked if not self.gaps else f"{checked}; {len(self.gaps)} could not be checked"


def verify_run(run: Run, *, partial: bool = False) -> RunVerdict:
    """Check every record of a run, and that none is missing; with `partial` not all were read."""
    problems: list[str] = []
    gaps: list[str] = []
    n_figures = 0
    for record in run.records:
        where = f"run {run.run_id[:6]}, {name_test(record)}"
        count, wrong, unchecked = verify_record(record)
        n_figures += count
        problems += [printable(f"{where}: {text}", 400) for text in wrong]
        gaps += [printable(f"{where}: {text}", 400) for text in unchecked]
    if partial:
        gaps.append("only the first tests of this run were read; --verify checks all")
    else:
        lost = (f"run {run.run_id[:6]}: {text}" for text in missing_parts(run.records))
        problems += [printable(text, 400) for text in lost]
    return RunVerdict(len(run.records), n_figures, tuple(problems), tuple(gaps))


def verify_record(record: Record) -> tuple[int, list[str], list[str]]:
    """(figures compared, what is wrong, what could not be checked) of one record."""
    wrong, gaps = [], []
    if record.get("schema") == 1:
        gaps.append("schema 1 has no digest")
    elif record.get(DIGEST) != digest_of(record):
        wrong.append("edited: the digest does not match")
    if record.get("imported"):
        gaps.append("imported from another tool, which keeps no raw trace")
        return 0, wrong, gaps
    traces = record.get("traces") or []
    figures = record.get("figures")
    count = 0
    if record["test"].get("kind") == "deadline":
        count, broken = check_workload(record)
        wrong += broken
        if not traces:  # every request was refused
            return count, wrong, gaps
    if not traces:
        gaps.append("no raw trace is stored")
        return 0, wrong, gaps
    if record["test"].get("kind") == "inference":
        gaps.append("an inference is timed around the call: its latencies are their own raw data")
        if isinstance(figures, list) and all(isinstance(f, Mapping) for f in figures):
            wrong += compare_spreads({"latency_s": record["metrics"].get("latency_s")}, figures)
        return 1, wrong, gaps
    if not isinstance(figures, list) or len(figures) != len(traces):
        wrong.append("the number of repetitions does not match the number of traces")
        return 0, wrong, gaps
    derived = []
    for number, (trace, stored) in enumerate(zip(traces, figures, strict=True), 1):
        try:
            again = derive(trace)
        except InputError as error:
            wrong.append(str(error))
            continue
        derived.append(again)
        for name, value in again.items():
            count += 1
            got = stored.get(name) if isinstance(stored, Mapping) else None
            if got != value:
                wrong.append(f"repetition {number}: {name} is {got!r}, the trace gives {value!r}")
    if len(derived) == len(traces):
        wrong += compare_spreads(record["metrics"], derived)
        count += len(record["metrics"])
    return count, wrong, gaps


def derive(trace: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Figures of a stored trace, by the same functions as `edge bench`."""
    if "loaded_ns" in trace:
        return measure_load(expand_load(trace))
    return numbers(measure(expand_trace(trace)))


def compare_spreads(
    stored: Mapping[str, Any], derived: Sequence[Mapping[str, float | int | None]]
) -> list[str]:
    """What is wrong with stored medians and ranges, one line per figure."""
    wrong = []
    again = spreads(derived)
    for name in dict.fromkeys([*stored, *again]):
        expected = again.get(name) or {}
        got = stored.get(name) or {}
        for part in dict.fromkeys([*expected, *got]):
            mine, right = got.get(part), expected.get(part)
            if not _is_equal(mine, right):
                wrong.append(f"{name}: {part} is {mine!r}, the trace gives {right!r}")
                break
    return wrong


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=SPREAD_TOLERANCE, abs_tol=1e-15)
    return bool(a == b)


def missing_parts(records: Sequence[Record]) -> list[str]:
    """Tests that a run had and its records no longer have; schema 1 cannot show it."""
    parts = [record["part"] for record in records if record.get("part")]
    total = max((part["of"] for part in parts), default=0)
    indexes = [part["index"] for part in parts]
    wrong = []
    if lost := sorted(set(range(min(total, 10_000))) - set(indexes)):
        numbers_text = ", ".join(str(i + 1) for i in lost[:10])
        wrong.append(f"{len(lost)} of {total} tests are missing (number {numbers_text})")
    if len(indexes) != len(set(indexes)):
        wrong.append("a test is there twice")
    return wrong


# ---- workloads -----------------------------------------------------------------------------------


def check_workload(record: Record) -> tuple[int, list[str]]:
    """(figures derived again, what is wrong) of the entry `deadline` of a record."""
    section = record.get("deadline")
    try:
        assert isinstance(section, dict)
        rows = section["requests"]
        accepted = [row for row in rows if row["accepted"]]
        traces = record["traces"]
        wrong = []
        if len(traces) != len(accepted):
            wrong.append(f"{len(accepted)} requests were accepted, there are {len(traces)} traces")
        for number, (row, trace) in enumerate(zip(accepted, traces, strict=False), 1):
            if row["n_out"] != len(trace.get("token_t_ns", [])):
                wrong.append(f"request {number}: its tokens are not those of its trace")
            pairs = ((row["total_s"], row["within_s"]), (row["first_s"], row["first_within_s"]))
            kept = all(limit is None or (s is not None and s <= limit) for s, limit in pairs)
            if row["met"] is not (row["first_s"] is not None and kept):
                wrong.append(f"request {number}: met is {row['met']}, its times contradict it")
        for row in rows:
            # Older records did not ask refused requests again.
            limit_s = row["first_within_s"] if row["within_s"] is None else row["within_s"]
            if "rightly" in row and row["rightly"] is not (row["need_s"] > limit_s):
                wrong.append(f"a refusal: rightly is {row['rightly']}, its time contradicts it")
        again = {"summary": summarize(rows), "by_task": by_task(rows)}
        figures = dict(_list_leaves(again))
        stored = dict(_list_leaves({key: section[key] for key in again}))
        wrong += [
            f"{name} is {stored.get(name)!r}, the requests give {figures.get(name)!r}"
            for name in dict.fromkeys([*figures, *stored])
            if not _is_equal(stored.get(name), figures.get(name))
        ]
        return len(figures), wrong
    except (AssertionError, KeyError, TypeError, AttributeError, ValueError, ArithmeticError):
        return 0, ["the entry 'deadline' is not as edge bench writes it"]


def _list_leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [
        leaf for key, value in tree.items() for leaf in _list_leaves(value, f"{path}.{key}"[-120:])
    ]
