"""A report as one self-contained HTML page: no script, no request, light, dark, phone and print.

The page is filled in by jinja2 with escaping on: every string of a result is untrusted. Only the
SVG that `boardfit.edge.report.draw` made is inserted as it is. A policy in the page's head forbids
scripts and all loading, in case something slips through anyway.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any, NamedTuple

from boardfit.edge.errors import EngineMissingError
from boardfit.edge.report import fleet, rows
from boardfit.edge.report.draw import EXTRA, Chart, Missing, draw_svg
from boardfit.edge.report.figures import (
    Record,
    Run,
    group_runs,
    name_clashes,
    page_title,
    run_labels,
)
from boardfit.edge.report.kinds import find_kind, group_alike, name_kind
from boardfit.edge.report.verify import verify_run
from boardfit.edge.requirements import install_line
from boardfit.edge.units import printable

# A page is for reading: the newest runs in full, more as rows, all of them in --format json.
MAX_DETAILED, MAX_DETAILED_OF_MANY, MANY_RUNS = 6, 2, 50
MAX_ROWS = 200


class Picture(NamedTuple):
    chart: Chart
    svg: str


def render_page(
    records: Sequence[Record],
    notes: Sequence[str] = (),
    within_s: float | None = None,
    partial: Collection[str] = (),
) -> str:
    """The whole page. Of the runs in `partial`, tests are missing."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise EngineMissingError(
            f"the page needs the Python package {error.name!r}, which is not installed",
            next_step=f"{install_line(EXTRA)}, or --format md",
        ) from None
    runs = group_runs(records)
    groups = group_alike(runs)
    labels = label_sections(runs, groups)
    n_detailed = MAX_DETAILED if len(runs) <= MANY_RUNS else MAX_DETAILED_OF_MANY
    detailed = list(zip(runs, labels, strict=True))[-n_detailed:][::-1]
    fleets = [make_fleet(group, n) for n, group in enumerate(groups, 1) if len(group) > 1]
    drawn, missing = pictures([fleet.quality_against_size(runs)], "all")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["run_rows"] = rows
    environment.filters["plain"] = lambda text, limit=300: printable(str(text), limit)
    template = environment.from_string(_file("page.html.j2"))
    sections = [
        section(run, label, number, within_s, run.run_id in partial)
        for number, (run, label) in enumerate(detailed, 1)
    ]
    return template.render(
        css=_file("page.css"),
        title=page_title(runs),
        kinds_note=fleet.fleet_verdict(runs) if len(groups) > 1 else None,
        fleets=fleets,
        sections=sections,
        overview=drawn,
        overview_missing=missing,
        n_runs=len(runs),
        max_rows=MAX_ROWS,
        n_detailed=len(sections),
        notes=[*name_clashes(runs), *notes],
    )


def label_sections(runs: Sequence[Run], groups: Sequence[Sequence[Run]]) -> list[str]:
    """Label each run among those of its kind; where there are several kinds, its kind is named."""
    if len(groups) == 1:
        return run_labels(runs)
    pairs = [pair for group in groups for pair in zip(group, run_labels(group), strict=True)]
    labels = {id(run): f"{label}: {name_kind(run)}" for run, label in pairs}
    return [labels[id(run)] for run in runs]


def make_fleet(runs: Sequence[Run], number: int) -> dict[str, Any]:
    """Everything the template shows of several runs of one kind."""
    pairs = zip(fleet.fleet_rows(runs), fleet.heat_shares(runs), strict=True)
    shown = list(pairs)[-MAX_ROWS:][::-1]
    drawn, missing = pictures([fleet.side_by_side(runs)], f"fleet{number}")
    return {
        "id": f"fleet{number}",
        "kind": name_kind(runs[0]),
        "verdict": fleet.fleet_verdict(runs),
        "columns": [column.heading for column in fleet.list_columns(runs)],
        "rows": [
            (cells[0], list(zip(cells[1:], map(find_step, shares), strict=True)))
            for cells, shares in shown
        ],
        "n_runs": len(runs),
        "n_rows": len(shown),
        "pictures": drawn,
        "missing": missing,
    }


def find_step(share: float | None) -> int | None:
    """The step of the heat map, from 0, far from the best, to 5, the best."""
    return None if share is None else max(0, min(5, int(share * 5 + 1e-9)))


def _file(name: str) -> str:
    return resources.files("boardfit.edge.report").joinpath(name).read_text(encoding="utf-8")


def pictures(charts: Sequence[Chart | Missing], prefix: str) -> tuple[list[Picture], list[Missing]]:
    """Charts drawn with ids of their own, and those that are missing."""
    drawn = []
    for chart in charts:
        if isinstance(chart, Chart):
            title, summary = printable(chart.title), printable(chart.summary, 600)
            named = replace(chart, key=f"{prefix}-{chart.key}", title=title, summary=summary)
            drawn.append(Picture(named, draw_svg(named)))
    return drawn, [chart for chart in charts if isinstance(chart, Missing)]


def section(
    run: Run, label: str, number: int, within_s: float | None, partial: bool = False
) -> dict[str, Any]:
    """Everything the template shows of one run, beside what it asks the run and its kind for."""
    kind = find_kind(run)
    drawn, missing = pictures(kind.charts(run, within_s), f"run{number}")
    if not rows.energy_rows(run):
        reason = "no power sensor was readable, or no request took three seconds"
        missing.append(Missing("Energy per token", reason))
    return {
        "id": f"run{number}",
        "label": label,
        "kind": kind,
        "run": run,
        "pictures": drawn,
        "missing": missing,
        "facts": rows.provenance(run),
        "check": verify_run(run, partial=partial),
    }
