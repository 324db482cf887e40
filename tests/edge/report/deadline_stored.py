"""Records of a workload's run, made as `edge bench --within` makes them, with times by hand."""

from __future__ import annotations

from typing import Any

from boardfit.edge.bench.deadline_run import DeadlineRun, DeadlineTest
from boardfit.edge.bench.metrics import measure, numbers
from tests.edge.report.stored import records, request


def row(
    total_s: float | None, within_s: float | None = 4.0, *, first_s: float | None = 0.5
) -> dict[str, Any]:
    is_met = first_s is not None and total_s is not None and (within_s or 1e9) >= total_s
    return {
        "task": "customer-service",
        "accepted": True,
        "within_s": within_s,
        "first_within_s": None,
        "first_s": first_s,
        "total_s": total_s,
        "n_out": 0 if first_s is None else 4,
        "n_possible": 9,
        "n_answer": 8,
        "met": is_met,
        "shortened": False,
        "whole_sentence": False,
        "adjustments": [],
    }


def workload_records(
    warm: list[dict[str, Any]],
    cold: list[dict[str, Any]] | None = None,
    *,
    workload: str = "customer-service",
    within_s: float | None = 4.0,
    **facts: Any,
) -> list[dict[str, Any]]:
    parts = [("warm", warm), *([("cold", cold)] if cold else [])]
    runs = []
    for start, rows in parts:
        test = DeadlineTest(
            "deadline", 0, 0, 0, workload=workload, within_s=within_s, start=start  # type: ignore[arg-type]
        )  # fmt: skip
        traces = [
            request(9000 * i, n_prompt=50, prefill_ms=500, n_out=found["n_out"] or 1, step_ms=50)
            for i, found in enumerate(rows)
        ]
        figures = [numbers(measure(trace)) for trace in traces]
        runs.append(DeadlineRun(test, "ab" * 32, traces, [], figures, [], rows=rows))
    made = records(list(runs), **facts)
    return [{**record, "deadline": run.section()} for record, run in zip(made, runs, strict=True)]
