"""`edge compare`: compare boards, engines, recipes or versions with a baseline."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from boardfit.edge.bench.importers import read_all
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.report.compare import Ratio, Side, check_alike, compare, differences, parse_gate
from boardfit.edge.report.figures import Run, group_runs, run_labels
from boardfit.edge.report.fleet import fleet_rows, heat_shares, list_columns
from boardfit.edge.report.kinds import group_alike, name_kind
from boardfit.edge.report.rows import align_columns
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import printable

_FAILED = 1


@click.command("compare")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--unlike", is_flag=True, help="Compare runs even if they differ in more than one setting."
)
@click.option(
    "--fail-if", "conditions", multiple=True, metavar="COND",
    help="Exit with 1 if this holds: 'decode<0.95x', 'memory>1.1x'. Repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the ratios as JSON.")
@click.pass_context
def compare_command(
    ctx: click.Context,
    results: tuple[Path, ...],
    unlike: bool,
    conditions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare benchmark runs with a baseline, with confidence intervals.

    The first file is the baseline. Each file counts with every run of its newest set-up. A ratio
    has a 95 % interval; an interval that contains 1 means "no difference seen". A single file is
    shown as a fleet: each run, and its distance from the best.
    """
    gates = [parse_gate(text) for text in conditions]
    if len(results) == 1:
        if gates:
            raise UsageError("--fail-if needs two result files", next_step="edge compare A B")
        runs = group_runs(read_all(list(results)).records)
        if not runs:
            raise InputError(f"there is no result in {results[0]}")
        echo(json.dumps(fleet_data(runs)) if as_json else "\n".join(fleet_lines(runs)))
        return
    sides = read_sides(results)
    if not unlike:
        for side in sides[1:]:
            check_alike(sides[0], side)
    first = sides[0]
    found = [(side, compare(first, side)) for side in sides[1:]]
    if not any(ratios for _, ratios in found):
        raise InputError(
            "the runs have no test in common",
            next_step="measure both with the same edge bench command",
        )
    failed = [(side, gate) for side, ratios in found for gate in gates if gate.is_missed(ratios)]
    if as_json:
        echo(json.dumps([pair_data(first, side, ratios) for side, ratios in found]))
    else:
        echo("\n".join(pair_lines(sides, found)))
    for side, gate in failed:
        echo(f"failed: {gate.text} holds for {printable(side.label)}", err=True)
    if failed:
        ctx.exit(_FAILED)


def read_sides(paths: Sequence[Path]) -> list[Side]:
    """One side per file: its newest run and all others of the same set-up. Raises InputError."""
    chosen = []
    for path in paths:
        runs = group_runs(read_all([path]).records)
        if not runs:
            raise InputError(f"there is no result in {path}", next_step="edge bench BUNDLE -o FILE")
        newest = runs[-1]
        chosen.append([run for run in runs if not differences(newest, run)])
    labels = run_labels([runs[-1] for runs in chosen])
    return [Side(label, tuple(runs)) for label, runs in zip(labels, chosen, strict=True)]


def pair_lines(sides: Sequence[Side], found: Sequence[tuple[Side, list[Ratio]]]) -> list[str]:
    first = sides[0]
    lines = [f"against {printable(first.label)} ({count_runs(first)})"]
    for side, ratios in found:
        lines += ["", f"{printable(side.label)} ({count_runs(side)})"]
        rows = [("", "ratio", "95 % interval", "", "tests")]
        for r in ratios:
            span = "–" if r.low is None or r.high is None else f"{r.low:.3f}–{r.high:.3f}"
            rows.append((r.figure.label, f"{r.value:.3f}x", span, r.verdict, str(r.n_tests)))
        lines += align_columns(rows) if ratios else ["  no test in common"]
    if all(len(side.runs) == 1 for side in sides):
        lines += ["", "one run each: what changes between runs (heat, other load) is not in it"]
    return lines


def count_runs(side: Side) -> str:
    return f"{len(side.runs)} run{'s' if len(side.runs) > 1 else ''}"


def pair_data(first: Side, side: Side, ratios: Sequence[Ratio]) -> dict[str, object]:
    return {
        "first": first.label,
        "other": side.label,
        "runs": [len(first.runs), len(side.runs)],
        "ratios": {
            r.figure.name: {
                "ratio": r.value,
                "low": r.low,
                "high": r.high,
                "seen": r.is_significant,
                "verdict": r.verdict,
                "repetitions": list(r.n),
            }
            for r in ratios
        },
    }


def fleet_lines(runs: Sequence[Run]) -> list[str]:
    """Every run with its figures, and each figure's share of the best as a bar of four steps."""
    groups, lines = group_alike(runs), list[str]()
    for group in groups:
        title = [f"{printable(name_kind(group[0]), 80)}:"] if len(groups) > 1 else []
        lines += [*title, *group_lines(group), ""]
    return [*lines, "  a full bar is the best of its column"]


def group_lines(runs: Sequence[Run]) -> list[str]:
    """A table of runs of one kind."""
    rows = [("run", *(column.heading for column in list_columns(runs)))]
    for cells, shares in zip(fleet_rows(runs), heat_shares(runs), strict=True):
        marked = zip(cells[1:], map(bar, shares), strict=True)
        rows.append((printable(cells[0], 60), *(" ".join(pair).rstrip() for pair in marked)))
    return align_columns(rows)


def bar(share: float | None) -> str:
    if share is None:
        return ""
    full = max(0, min(4, round(share * 4)))
    return "█" * full + "·" * (4 - full)


def fleet_data(runs: Sequence[Run]) -> list[dict[str, object]]:
    return [
        {
            "run_id": run.run_id,
            "label": label,
            "kind": name_kind(run),
            **{column.heading: column.find(run) for column in list_columns([run])},
        }
        for label, run in zip(run_labels(runs), runs, strict=True)
    ]
