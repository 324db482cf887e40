"""Rows of a report about a workload: how many of its requests were answered in time."""

from collections.abc import Mapping
from typing import Any

from boardfit.edge.report.figures import Figure, Record, Run, Table, name_test
from boardfit.edge.units import format_bytes, format_seconds


def find_section(record: Record) -> Mapping[str, Any]:
    """What a result keeps of a workload; empty where it is none."""
    found = record.get("deadline")
    return found if isinstance(found, Mapping) else {}


def find_summary(record: Record) -> Mapping[str, Any]:
    return find_section(record).get("summary") or {}


def deadline_verdict(run: Run) -> str:
    """One sentence: the share answered in time, with its interval, and what was refused."""
    found = find_summary(run.head)
    what = f"{run.head['artifact']['name']} on {run.machine_name}"
    refused, share = found.get("n_refused"), found.get("refused_rightly_share")
    rightly = "" if share is None else f" ({share_text(share)} of them rightly)"
    if found.get("hit_rate") is None:
        return f"{what}: all {refused or 'requests'} were refused{rightly}, the time is too short."
    others = [(r["test"].get("start") or r["test"].get("label"), r) for r in run.records[1:]]
    cold = "".join(
        f"; {start} {counts['n_met']} of {counts['n_accepted']}"
        for start, record in others
        if (counts := find_summary(record)).get("n_accepted")
    )
    return (
        f"{what} answers {found['n_met']} of {found['n_accepted']} requests in time "
        f"({share_text(found['hit_rate'])}, {_interval(found)}; {run.head['test'].get('label')})"
        f"{f', {refused} were refused{rightly}' if refused else ''}{cold}."
    )


DEADLINE_HEADER = (
    "workload", "in time", "95 % interval", "refused", "first token p50 / p99",
    "whole p50 / p99", "worst overrun",
)  # fmt: skip


def deadline_rows(run: Run) -> list[tuple[str, ...]]:
    """One row per test, and one per task where a test has several."""
    rows = []
    for record in run.records:
        rows.append(_row(name_test(record), find_summary(record)))
        tasks = find_section(record).get("by_task") or {}
        known = [(name, found) for name, found in tasks.items() if found]
        rows += [_row(f"· {name}", found) for name, found in known if len(tasks) > 1]
    return rows


def _row(label: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    n, met = found.get("n_accepted"), found.get("n_met")
    overrun_s, relative = found.get("worst_overrun_s"), found.get("worst_overrun_share")
    overrun = f"{format_seconds(overrun_s)} ({100 * (relative or 0):.1f} %)"
    return (
        label,
        f"{met} of {n}" if n else "–",
        _interval(found),
        str(found.get("n_refused") or 0),
        _format_p50_p99(found.get("first_s")),
        _format_p50_p99(found.get("total_s")),
        overrun if overrun_s else "–" if overrun_s is None else "none",
    )


ANSWER_HEADER = ("workload", "shortened", "end at a sentence", "tokens given", "adjusted")


def answer_row(record: Record) -> tuple[str, ...]:
    """What the time cost the answers."""
    found = find_summary(record)
    adjusted = ", ".join(f"{kind} {n}" for kind, n in (found.get("adjustments") or {}).items())
    return (
        name_test(record),
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
    return "–" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f} %"


def _format_p50_p99(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "–"
    return f"{format_seconds(spread.get('p50'))} / {format_seconds(spread.get('p99'))}"


def deadline_notes(run: Run) -> list[str]:
    """What was left out, each once."""
    notes = [note for record in run.records for note in find_section(record).get("notes") or ()]
    return list(dict.fromkeys(notes))


def deadline_figures(run: Run) -> list[Figure]:
    """The figures that matter, each with its text."""
    found = find_summary(run.head)
    slowest = format_seconds((found.get("total_s") or {}).get("p99"))
    return [
        ("answered in time", share_text(found.get("hit_rate")), _interval(found)),
        ("whole answer, p99", slowest, ""),
        ("tokens given of those possible", share_text(found.get("given_share")), ""),
        ("peak anonymous memory", format_bytes(run.peak("peak_anon_bytes")), ""),
        ("file", format_bytes(run.head["artifact"].get("n_bytes")), ""),
    ]
