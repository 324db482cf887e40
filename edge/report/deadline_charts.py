"""Charts of a workload's run: its latencies as a distribution, against their budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.bench.metrics import quantile
from boardfit.edge.report.chart import Chart, LimitLine, Missing, Panel, Series
from boardfit.edge.report.figures import Record, Run
from boardfit.edge.report.run_charts import find_ecdf, memory_over_time
from boardfit.edge.units import format_seconds

_POINTS = (("fastest", 0.0), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("slowest", 1.0))
NO_BUDGET = "No budget was set for this."
# (entry of a request, its budget, key, title, what)
_WHOLE = ("total_s", "within_s", "deadline-answers", "Whole answers against the budget")
_FIRST = ("first_s", "first_within_s", "deadline-first", "First tokens against the budget")


def deadline_charts(run: Run, within_s: float | None = None) -> list[Chart | Missing]:
    """All charts of a workload's run in the order of the page."""
    whole = against_budget(run, *_WHOLE, within_s)
    first = against_budget(run, *_FIRST, None)
    return [whole, first, memory_over_time(run)]


def against_budget(
    run: Run, name: str, limit: str, key: str, title: str, within_s: float | None
) -> Chart | Missing:
    """Draw the times of one phase for each test of a run. Requests with different budgets are drawn
    as shares of their own.
    """
    asked = [(str(r["test"].get("label", "?")), list_times(r, name, limit)) for r in run.records]
    rows = [(label, times) for label, times in asked if len(times) >= 2]
    if not rows:
        return Missing(title, "fewer than two requests were answered")
    budgets = {budget for _, times in rows for _, budget in times}
    if within_s is not None:
        budgets = {within_s}
    if len(budgets) > 1 and None in budgets:
        return Missing(title, "some requests have a budget for this, and others have none")
    budget = next(iter(budgets)) if len(budgets) == 1 else None
    is_share = len(budgets) > 1
    drawn = [
        (label, [100 * t / b if is_share and b else t for t, b in times]) for label, times in rows
    ]
    end = 100.0 if is_share else budget
    shown = "own budget" if is_share else f"budget {format_seconds(budget)}"
    return Chart(
        key,
        title,
        " ".join(_summarize(label, values, end, is_share=is_share) for label, values in drawn),
        "% of each request's own budget" if is_share else "seconds",
        (
            Panel(
                "% of requests",
                tuple(Series(label, *find_ecdf(values), "steps") for label, values in drawn),
                LimitLine(end, shown, "x") if end else None,
            ),
        ),
        ("point", *(label for label, _ in drawn)),
        tuple(
            (point, *(_text(quantile(values, q), is_share=is_share) for _, values in drawn))
            for point, q in _POINTS
        ),
        " ".join(
            filter(None, [count_unanswered(run), "" if end else "No budget was set for this."])
        )
        or None,
    )


def list_times(record: Record, name: str, limit: str) -> list[tuple[float, float | None]]:
    """(seconds, budget) of each answered request, which is one that gave a token in its time. A
    result is untrusted: odd rows are left out.
    """
    section = record.get("deadline")
    rows = section.get("requests") if isinstance(section, Mapping) else None
    found = []
    for row in rows if isinstance(rows, list) else []:
        seconds = _positive(row, name)
        if seconds is not None and _positive(row, "first_s") is not None:
            found.append((seconds, _positive(row, limit)))
    return found


def _positive(row: Any, name: str) -> float | None:
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if 0 < value < float("inf") else None


def _summarize(label: str, values: Sequence[float], end: float | None, *, is_share: bool) -> str:
    half, slowest = (_text(v, is_share=is_share) for v in (quantile(values, 0.5), max(values)))
    n = len(values)
    text = f"{label}: half of {n} answered requests took at most {half}, the slowest {slowest}"
    if end is not None:
        text += f"; {sum(v <= end for v in values)} kept the budget"
    return f"{text}."


def count_unanswered(run: Run) -> str:
    """State how many accepted requests gave no token in their time; empty where all did."""
    texts = []
    for record in run.records:
        found = record.get("deadline")
        rows = found.get("requests") if isinstance(found, Mapping) else None
        accepted = [
            row
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, Mapping) and row.get("accepted")
        ]
        n_silent = sum(_positive(row, "first_s") is None for row in accepted)
        if n_silent:
            label = record["test"].get("label", "?")
            texts.append(f"{label}: {n_silent} of {len(accepted)} gave no answer at all.")
    return " ".join(texts)


def _text(value: float, *, is_share: bool) -> str:
    return f"{value:.0f} %" if is_share else format_seconds(value)
