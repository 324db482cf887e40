"""Check that a workload's stored summary follows from its requests, and those from their traces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from boardfit.edge.bench.deadline_summary import by_task, summarize
from boardfit.edge.report.figures import Record


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
            if row["met"] is not _is_met(row):
                wrong.append(f"request {number}: met is {row['met']}, its times contradict it")
        for row in rows:
            # Older records did not ask refused requests again.
            if "rightly" in row and row["rightly"] is not (row["need_s"] > _limit_s(row)):
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


def _limit_s(row: Mapping[str, Any]) -> float:
    limit: float = row["first_within_s"] if row["within_s"] is None else row["within_s"]
    return limit


def _is_met(row: Mapping[str, Any]) -> bool:
    pairs = ((row["total_s"], row["within_s"]), (row["first_s"], row["first_within_s"]))
    kept = all(limit is None or (s is not None and s <= limit) for s, limit in pairs)
    return row["first_s"] is not None and kept


def _list_leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [
        leaf for key, value in tree.items() for leaf in _list_leaves(value, f"{path}.{key}"[-120:])
    ]


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-15)
    return bool(a == b)
