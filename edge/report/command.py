"""`edge report`: stored results as a page, Markdown, JSON or one picture; or checked."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import click

from boardfit.edge.bench.importers import read_all
from boardfit.edge.bench.store import MAX_LINES, Results, data_directory
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import InputError, IntegrityError, UsageError
from boardfit.edge.report.exports import to_csv, to_llama_bench
from boardfit.edge.report.figures import Record, group_runs, page_title
from boardfit.edge.report.kinds import find_kind, key_figures
from boardfit.edge.report.markdown import render
from boardfit.edge.report.verify import verify_run
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import parse_seconds, printable

Format = Literal["md", "html", "json", "png", "csv", "llama-bench"]
_BY_SUFFIX: dict[str, Format] = {".html": "html", ".htm": "html", ".json": "json", ".png": "png",
                                 ".md": "md", ".csv": "csv"}  # fmt: skip


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """`5s`, `500ms`, `2min` on the command line."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return parse_seconds(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--format",
    "wanted",
    type=click.Choice(get_args(Format)),
    help="Output format. [default: by the output's suffix, else md]",
)
@click.option("--last", is_flag=True, help="Use only the newest run.")
@click.option("--within", type=Seconds(), help="Draw answer times against this budget: 5s, 800ms.")
@click.option("--verify", is_flag=True, help="Compute every figure again from the raw traces.")
@click.option("--json", "as_json", is_flag=True, help="Same as --format json.")
def report(
    results: tuple[Path, ...],
    output: Path | None,
    wanted: Format | None,
    last: bool,
    within: float | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Render stored results as a page (-o report.html), Markdown, JSON or one picture.

    Without RESULTS, use everything that `edge bench` stored. Results of llama-bench, litert-lm
    benchmark, ExecuTorch, onnxruntime-genai, Ollama and MLPerf LoadGen work too. The report marks
    what they did not measure.

    --verify prints each check. It exits with 7 when a result differs from its measurement.
    """
    kind = "json" if as_json else wanted or choose_format(output)
    # Pages are for reading; data and checks are of everything.
    most = MAX_LINES if kind in ("html", "md", "png") and not verify else None
    found = choose_results(results, last=last, most=most)
    if verify:
        check(found.records, as_json=as_json)
        return
    data = render_report(found, kind, within)
    if output is None:
        if kind == "png":
            raise UsageError("a picture needs a file", next_step="-o report.png")
        echo(data.decode(), nl=False)
        return
    write_atomic(output, data)
    n_runs = len({r["run_id"] for r in found.records})
    echo(f"{output}: {n_runs} run(s), {len(data) / 1000:,.0f} kB", err=True)


def choose_results(results: Sequence[Path], last: bool = False, most: int | None = None) -> Results:
    """The results of the files, or of the store. Raises InputError when there are none."""
    paths = list(results) or sorted(data_directory().glob("*.jsonl"))
    if not paths:
        raise InputError("no results are stored yet", next_step="edge bench BUNDLE")
    found = read_all(paths, most)
    if not found.records:
        raise InputError(f"there is no result in {paths[0]}", next_step="edge bench BUNDLE")
    if not last:
        return found
    newest = max(found.records, key=lambda r: str(r["time"]))["run_id"]
    return replace(found, records=tuple(r for r in found.records if r["run_id"] == newest))


def choose_format(output: Path | None) -> Format:
    return _BY_SUFFIX.get(output.suffix.lower(), "md") if output else "md"


def render_report(found: Results, kind: Format, within_s: float | None = None) -> bytes:
    """The report in one of its formats. Raises EngineMissingError without the extra it needs."""
    records = found.records
    if kind == "png":
        return picture(records, within_s)
    if kind == "json":
        plain = [{k: v for k, v in r.items() if k != "traces"} for r in records]
        text = json.dumps(plain) + "\n"
    elif kind == "csv":
        text = to_csv(records)
    elif kind == "llama-bench":
        text = to_llama_bench(records)
    elif kind == "html":
        from boardfit.edge.report.page import render_page

        text = render_page(records, found.notes, within_s, found.partial)
    else:
        text = render(records, found.notes)
    return text.encode("utf-8", "replace")  # lone surrogates: JSON may hold them, UTF-8 may not


def picture(records: Sequence[Record], within_s: float | None) -> bytes:
    """The newest run's charts on one sheet."""
    from boardfit.edge.report.draw import Chart, draw_png

    run = group_runs(records)[-1]
    figures = " · ".join(f"{name} {text}" for name, text in key_figures(run))
    kind = find_kind(run)
    charts = [chart for chart in kind.charts(run, within_s) if isinstance(chart, Chart)]
    return draw_png(charts, [page_title([run]), kind.verdict(run), figures])


def check(records: Sequence[Record], *, as_json: bool) -> None:
    """Print what was checked, run by run. Raises IntegrityError when something does not hold."""
    verdicts = [(run, verify_run(run)) for run in group_runs(records)]
    for run, found in verdicts:
        if as_json:
            counts = {"tests": found.n_records, "figures": found.n_figures}
            problems = {"problems": found.problems, "unchecked": found.gaps}
            echo(json.dumps({"run_id": run.run_id, **counts, **problems}))
            continue
        echo(f"{printable(run.run_id[:12])}  {printable(page_title([run]), 80)}")
        echo(f"  {found.text}")
        for text in (*found.problems, *found.gaps):
            echo(f"  - {text}")
    broken = sum(bool(found.problems) for _, found in verdicts)
    if broken:
        raise IntegrityError(
            f"{broken} of {len(verdicts)} run(s) differ from their measurement",
            next_step="measure again with edge bench, or ask for the unchanged file",
        )
