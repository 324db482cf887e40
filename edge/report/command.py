"""`edge report`: Markdown or JSON from stored results."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edge.atomic import write_atomic
from edge.bench.store import data_directory, read_results
from edge.errors import InputError
from edge.report.markdown import render


@click.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here.")
@click.option("--last", is_flag=True, help="Only the newest run.")
@click.option("--json", "as_json", is_flag=True, help="The records, without raw traces, as JSON.")
def report(results: tuple[Path, ...], output: Path | None, last: bool, as_json: bool) -> None:
    """Render stored results as Markdown. Without RESULTS: all that `edge bench` stored."""
    paths = list(results) or sorted(data_directory().glob("*.jsonl"))
    if not paths:
        raise InputError("no results are stored yet", next_step="edge bench BUNDLE")
    found = read_results(paths)
    records = list(found.records)
    if not records:
        raise InputError(f"there is no result in {paths[0]}", next_step="edge bench BUNDLE")
    if last:
        newest = max(records, key=lambda r: str(r["time"]))["run_id"]
        records = [r for r in records if r["run_id"] == newest]
    if as_json:
        text = json.dumps([{k: v for k, v in r.items() if k != "traces"} for r in records]) + "\n"
    else:
        text = render(records, found.notes)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_atomic(output, text.encode())
        click.echo(f"{output}: {len({r['run_id'] for r in records})} run(s)", err=True)
