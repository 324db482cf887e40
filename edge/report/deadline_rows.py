"""Rows of a report about a workload: how many of its requests were answered in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.report.figures import Figure, Record, Run, Table, machine_name, peak
from boardfit.edge.report.rows import align_columns
from boardfit.edge.units import format_bytes, format_seconds, printable


def find_summary(record: Record) -> Mapping[str, Any]:
    """The stored summary of a workload's test; empty where it is none."""
    section = record.get("deadline")
    found = section.get("summary") if isinstance(section, dict) else None
    return found if isinstance(found, dict) else {}


def deadline_verdict(run: Run) -> str:
    """One sentence: the share answered in time, with its interval, and what was refused."""
    record = run.records[0]
    found = find_summary(record)
    name, where = run.head["artifact"]["name"], machine_name(run)
    if found.get("hit_rate") is None:
        n = found.get("n_refused")
        return (
            f"{name} on {where}: all {n or 'requests'} were refused{_format_rightly(found)}, "
            "the time is too short."
        )
    rate = share_text(found["hit_rate"])
    tail = ""
    if found.get("n_refused"):
        tail = f", {found['n_refused']} were refused{_format_rightly(found)}"
    return (
        f"{name} on {where} answers {found['n_met']} of {found['n_accepted']} requests in time "
        f"({rate}, {_interval(found)}; {record['test'].get('label')}){tail}"
        f"{_format_cold(run.records[1:])}."
    )


def _format_cold(records: Sequence[Record]) -> str:
    """The outcome of the other starts: `; cold 0 of 5`."""
    parts = [
        f"; {record['test'].get('start') or record['test'].get('label')} {found['n_met']} of "
        f"{found['n_accepted']}"
        for record in records
        if (found := find_summary(record)).get("n_accepted")
    ]
    return "".join(parts)


def _format_rightly(found: Mapping[str, Any]) -> str:
    share = found.get("refused_rightly_share")
    return "" if share is None else f" ({share_text(share)} of them rightly)"


DEADLINE_HEADER = (
    "workload", "in time", "95 % interval", "refused", "first token p50 / p99",
    "whole p50 / p99", "worst overrun",
)  # fmt: skip


def deadline_row(record: Record) -> tuple[str, ...]:
    return _row(str(record["test"].get("label", "?")), find_summary(record))


def deadline_rows(run: Run) -> list[tuple[str, ...]]:
    """One row per test, and one per task where a test has several."""
    rows = []
    for record in run.records:
        rows.append(deadline_row(record))
        section = record.get("deadline")
        tasks = section.get("by_task") if isinstance(section, dict) else None
        if isinstance(tasks, dict) and len(tasks) > 1:
            known = ((name, found) for name, found in tasks.items() if isinstance(found, dict))
            rows += [_row(f"· {name}", found) for name, found in known]
    return rows


def _row(label: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    n, met = found.get("n_accepted"), found.get("n_met")
    return (
        label,
        f"{met} of {n}" if n else "–",
        _interval(found),
        str(found.get("n_refused") or 0),
        _format_p50_p99(found.get("first_s")),
        _format_p50_p99(found.get("total_s")),
        _overrun(found),
    )


ANSWER_HEADER = ("workload", "shortened", "end at a sentence", "tokens given", "adjusted")


def answer_row(record: Record) -> tuple[str, ...]:
    """What the time cost the answers."""
    found = find_summary(record)
    kinds = found.get("adjustments")
    adjusted = ", ".join(f"{k} {n}" for k, n in kinds.items()) if isinstance(kinds, dict) else ""
    return (
        str(record["test"].get("label", "?")),
        f"{found.get('n_shortened', 0)} of {found.get('n_accepted', 0)}",
        share_text(found.get("whole_sentence_share")),
        share_text(found.get("given_share")),
        adjusted or "nothing",
    )


def deadline_tables(run: Run) -> list[Table]:
    """What was answered in time, and what the time cost the answers."""
    answers = [answer_row(record) for record in run.records]
    return [(DEADLINE_HEADER, deadline_rows(run)), (ANSWER_HEADER, answers)]


def share_text(share: float | None) -> str:
    """`98.0 %`; `–` where nothing was counted."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _interval(found: Mapping[str, Any]) -> str:
    low, high = found.get("hit_rate_low"), found.get("hit_rate_high")
    if low is None or high is None:
        return "–"
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def _format_p50_p99(spread: Any) -> str:
    if not isinstance(spread, dict):
        return "–"
    return f"{format_seconds(spread.get('p50'))} / {format_seconds(spread.get('p99'))}"


def _overrun(found: Mapping[str, Any]) -> str:
    seconds, relative = found.get("worst_overrun_s"), found.get("worst_overrun_share")
    if seconds is None:
        return "–"
    if not seconds:
        return "none"
    return f"{format_seconds(seconds)} ({100 * (relative or 0):.1f} %)"


def deadline_notes(run: Run) -> list[str]:
    """What was left out, each once."""
    notes: dict[str, None] = {}
    for record in run.records:
        section = record.get("deadline")
        found = section.get("notes") if isinstance(section, dict) else None
        notes |= dict.fromkeys(map(str, found if isinstance(found, list) else []))
    return list(notes)


def deadline_figures(run: Run) -> list[Figure]:
    """The figures that matter, each with its text."""
    found = find_summary(run.records[0])
    total = found.get("total_s")
    return [
        ("answered in time", share_text(found.get("hit_rate")), _interval(found)),
        (
            "whole answer, p99",
            format_seconds(total.get("p99") if isinstance(total, dict) else None),
            "",
        ),
        ("tokens given of those possible", share_text(found.get("given_share")), ""),
        ("peak anonymous memory", format_bytes(peak(run, "peak_anon_bytes")), ""),
        ("file", format_bytes(run.head["artifact"].get("n_bytes")), ""),
    ]


def deadline_lines(run: Run) -> list[str]:
    """A run for a terminal."""
    lines = [printable(deadline_verdict(run), 400)]
    for header, rows in deadline_tables(run):
        lines += ["", *align_columns([header, *rows])]
    notes = deadline_notes(run)
    return [*lines, *([""] if notes else []), *(f"note: {printable(n, 300)}" for n in notes)]
