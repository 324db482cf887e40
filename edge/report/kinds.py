"""The kinds of runs that a report knows, in one table. Every page and line is made through it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from boardfit.edge.report import charts
from boardfit.edge.report import deadline_rows as workload
from boardfit.edge.report import language_rows as language
from boardfit.edge.report import network_rows as network
from boardfit.edge.report.draw import Chart, Missing
from boardfit.edge.report.figures import Figure, Run, Table, median
from boardfit.edge.report.rows import align_columns, flag_lines
from boardfit.edge.units import MIB, format_bytes, format_seconds, printable


class Column(NamedTuple):
    """A figure in which runs of one kind stand side by side. `praise` is what a headline states of
    the best run. `scale` is what a bar's unit is worth; None draws no bars.
    """

    heading: str
    find: Callable[[Run], float | None]
    text: Callable[[float], str]
    more_is_better: bool
    praise: str = ""
    scale: float | None = None


def find_memory(run: Run) -> float | None:
    value = run.peak("peak_anon_bytes")
    return None if value is None else float(value)


def find_slow(name: str) -> Callable[[Run], float | None]:
    """Find the 99th percentile of one of a workload's times."""
    return lambda run: (workload.find_summary(run.head).get(name) or {}).get("p99")


MEMORY = Column(
    "anonymous memory", find_memory, lambda value: format_bytes(int(value)), False,
    "needs the least memory", float(MIB),
)  # fmt: skip
#: The first load test's, or what a network's own record holds.
LOAD = Column(
    "load", lambda run: median(run.first("load") or run.head, "load_s"), format_seconds, False
)


@dataclass(frozen=True)
class Kind:
    """What a report prints of runs of one kind."""

    name: str
    columns: tuple[Column, ...]
    verdict: Callable[[Run], str]
    figures: Callable[[Run], list[Figure]]
    tables: Callable[[Run], list[Table]]
    charts: Callable[[Run, float | None], list[Chart | Missing]]
    notes: Callable[[Run], list[str]] = lambda run: []


LANGUAGE = Kind(
    "speed",
    (
        Column(
            "decode, tokens/s", lambda run: median(run.best_decode, "decode_tps"),
            "{:,.1f}".format, True, "decodes fastest", 1.0,
        ),
        Column(
            "prefill, tokens/s", lambda run: median(run.longest_prefill, "prefill_tps"),
            "{:,.0f}".format, True, scale=1.0,
        ),
        Column(
            "time to first token", lambda run: median(run.first("end-to-end"), "ttft_s"),
            format_seconds, False,
        ),
        MEMORY,
        LOAD,
    ),
    language.language_verdict,
    language.language_figures,
    lambda run: [(language.SPEED_HEADER, language.speed_rows(run))],
    charts.language_charts,
)  # fmt: skip
#: By the kind that all tests of a run share. Any other run is a language model's.
KINDS = {
    "inference": Kind(
        "network",
        (
            Column(
                "latency, median", lambda run: median(run.head, "latency_s"),
                network.latency_text, False, "is fastest",
            ),
            MEMORY,
            LOAD,
        ),
        network.network_verdict,
        network.network_figures,
        network.network_tables,
        charts.network_charts,
    ),
    "deadline": Kind(
        "workload",
        (
            Column(
                "answered in time", lambda run: workload.find_summary(run.head).get("hit_rate"),
                workload.share_text, True, "answers most in time",
            ),
            Column("whole answer, p99", find_slow("total_s"), format_seconds, False),
            Column("first token, p99", find_slow("first_s"), format_seconds, False),
            MEMORY,
        ),
        workload.deadline_verdict,
        workload.deadline_figures,
        workload.deadline_tables,
        charts.deadline_charts,
        workload.deadline_notes,
    ),
}  # fmt: skip


def find_kind(run: Run) -> Kind:
    """Find the kind of a run. A run of several kinds of tests is a language model's."""
    names = {str(record["test"].get("kind")) for record in run.records}
    return KINDS.get(names.pop(), LANGUAGE) if len(names) == 1 else LANGUAGE


def group_alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that may be compared: of one kind, and of one workload with the same budget."""
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


def key_figures(run: Run) -> list[tuple[str, str]]:
    """The figures that matter, each with its text."""
    return [
        (name, f"{text} ({interval})" if interval else text)
        for name, text, interval in find_kind(run).figures(run)
    ]


def run_lines(run: Run) -> list[str]:
    """Print a run for a terminal: verdict, one line per test, figures, notes, flags."""
    kind = find_kind(run)
    lines = [kind.verdict(run)]
    for header, rows in (*kind.tables(run), (("figure", "value"), key_figures(run))):
        lines += ["", *align_columns([header, *rows])]
    doubts = [f"note: {printable(note, 300)}" for note in kind.notes(run)]
    doubts += [f"flagged: {printable(flag, 300)}" for flag in flag_lines(run)]
    return [printable(line, 1000) for line in [*lines, *([""] if doubts else []), *doubts]]
