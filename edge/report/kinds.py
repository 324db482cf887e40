"""The kinds of runs that a report knows, in one table. Every page and line is made through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from boardfit.edge.report.chart import Chart, Missing
from boardfit.edge.report.columns import (
    DEADLINE_COLUMNS,
    LANGUAGE_COLUMNS,
    NETWORK_COLUMNS,
    Column,
)
from boardfit.edge.report.deadline_charts import deadline_charts
from boardfit.edge.report.deadline_rows import (
    deadline_figures,
    deadline_lines,
    deadline_notes,
    deadline_tables,
    deadline_verdict,
)
from boardfit.edge.report.figures import Figure, Run, Table
from boardfit.edge.report.language_rows import (
    SPEED_HEADER,
    language_figures,
    language_lines,
    language_verdict,
    speed_rows,
)
from boardfit.edge.report.network_rows import (
    network_figures,
    network_lines,
    network_tables,
    network_verdict,
)
from boardfit.edge.report.run_charts import language_charts, latencies, memory_over_time


@dataclass(frozen=True)
class Kind:
    """What a report prints of runs of one kind. `lines` are for a terminal, and `columns` are what
    several runs are compared in.
    """

    name: str
    columns: tuple[Column, ...]
    verdict: Callable[[Run], str]
    figures: Callable[[Run], list[Figure]]
    tables: Callable[[Run], list[Table]]
    lines: Callable[[Run], list[str]]
    charts: Callable[[Run, float | None], list[Chart | Missing]]
    notes: Callable[[Run], list[str]] = lambda run: []


LANGUAGE = Kind(
    "speed",
    LANGUAGE_COLUMNS,
    language_verdict,
    language_figures,
    lambda run: [(SPEED_HEADER, speed_rows(run))],
    language_lines,
    language_charts,
)
#: By the kind that all tests of a run share. Any other run is a language model's.
KINDS = {
    "inference": Kind(
        "network",
        NETWORK_COLUMNS,
        network_verdict,
        network_figures,
        network_tables,
        network_lines,
        lambda run, within_s: [latencies(run, within_s), memory_over_time(run)],
    ),
    "deadline": Kind(
        "workload",
        DEADLINE_COLUMNS,
        deadline_verdict,
        deadline_figures,
        deadline_tables,
        deadline_lines,
        deadline_charts,
        deadline_notes,
    ),
}


def find_kind(run: Run) -> Kind:
    """Find the kind of a run. A run of several kinds of tests is a language model's."""
    names = {str(record["test"].get("kind")) for record in run.records}
    return KINDS.get(names.pop(), LANGUAGE) if len(names) == 1 else LANGUAGE


def group_alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that may be compared: of one kind, and of one workload with the same budget. In
    the order of their first runs.
    """
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((find_kind(run).name, *describe_workload(run)), []).append(run)
    return list(groups.values())


def describe_workload(run: Run) -> tuple[str, ...]:
    """Name what a run was asked: the labels of its workload's tests; nothing for other kinds."""
    if find_kind(run) is not KINDS["deadline"]:
        return ()
    return tuple(str(record["test"].get("label", "?")) for record in run.records)


def name_kind(run: Run) -> str:
    """Name a run's kind: `speed`, `network`, or its workload."""
    workload = describe_workload(run)
    return workload[0].removesuffix(", warm") if workload else find_kind(run).name


def verdict(run: Run) -> str:
    """One sentence: how quick the run was, and what limits it."""
    return find_kind(run).verdict(run)


def key_figures(run: Run) -> list[tuple[str, str]]:
    """The figures that matter, each with its text."""
    return [
        (name, f"{text} ({interval})" if interval else text)
        for name, text, interval in find_kind(run).figures(run)
    ]


def run_charts(run: Run, within_s: float | None = None) -> list[Chart | Missing]:
    """All charts of a run in the order of the page. Raises InputError on a broken trace."""
    return find_kind(run).charts(run, within_s)
