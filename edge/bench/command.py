"""`edge bench`: measure a bundle (or a GGUF file) on this machine and store the results."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from boardfit.edge.bench.language_model import bench_language_model, bench_workload
from boardfit.edge.bench.network import bench_network, is_network
from boardfit.edge.bench.request import DEFAULT_REPEATS, BenchRequest, workload_options
from boardfit.edge.bench.sampler import read_memory
from boardfit.edge.bench.store import append_results, find_month_file
from boardfit.edge.errors import UsageError
from boardfit.edge.process.live import publish_status
from boardfit.edge.report.figures import group_runs
from boardfit.edge.report.kinds import run_lines
from boardfit.edge.template.options import TEMPLATE_OPTIONS
from boardfit.edge.terminal.option_groups import GroupedCommand
from boardfit.edge.terminal.options import add_options
from boardfit.edge.terminal.output import echo, shell_line
from boardfit.edge.units import printable


@click.command(cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Append results to this file."
)
@click.option(
    "--quick", is_flag=True,
    help="Use short prompts and answers; a small model takes under a minute.",
)  # fmt: skip
@click.option(
    "--protocol", type=click.Choice(["standard", "quick", "sustained"]),
    help="standard; quick (same as --quick); or sustained: quick, then minutes of decode.",
)  # fmt: skip
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
    help="Minutes of decode with --protocol sustained.",
)  # fmt: skip
@click.option(
    "--cool-below", type=click.FloatRange(0, 150), metavar="°C",
    help="Wait up to ten minutes until the board is cooler than this, or flag the run.",
)  # fmt: skip
@click.option(
    "--repeats", type=click.IntRange(min=1), default=DEFAULT_REPEATS, show_default=True,
    help="Number of repetitions of each test.",
)  # fmt: skip
@click.option("--gen", "n_gen", type=click.IntRange(min=2), help="Tokens per decode test.")
@click.option(
    "--threads", "n_threads", type=click.IntRange(min=1),
    help="Number of threads. [default: the plan's]",
)  # fmt: skip
@click.option(
    "--ctx", "n_ctx", type=click.IntRange(min=64),
    help="Context length, in tokens. [default: the plan's]",
)  # fmt: skip
@click.option("--kv-type", help="Type of the KV cache. [default: the plan's]")
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224",
    help="Shape of an input with open dimensions (networks other than language models).",
)  # fmt: skip
@click.option(
    "--no-memory-check", is_flag=True, help="Load the model even if memory looks too short."
)
@add_options(*TEMPLATE_OPTIONS)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result lines on stdout instead of a report."
)
@workload_options
@publish_status("bench")
def bench(model: Path, output: Path | None, as_json: bool, **options: Any) -> None:
    """Measure MODEL (a bundle or a model file): memory, TTFT, prefill, decode and load.

    With --within or --workload, measure how many of a task's requests are answered in time.

    For any other network (an .onnx or .tflite file, or the output of `edge build`), measure
    latency, memory and load. The inputs are made from its signature.

    Every test starts with a discarded warm-up and has at least five repetitions, taken in turns.
    Results keep their raw timestamps; `edge report` renders them.
    """
    request = BenchRequest.from_options(model, **options)
    store(measure(request, asdict(read_memory())), output, as_json)


def measure(request: BenchRequest, baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure a model by its kind: one record per test. `baseline` is this process's memory before.
    Raises UsageError for options of another kind.
    """
    if is_network(request.model):
        if request.workload is not None:
            raise UsageError("--workload and --within need a language model")
        return bench_network(request, baseline)
    if request.shapes:
        raise UsageError("--shape is for networks other than language models")
    if request.workload is not None:
        return bench_workload(request, request.workload, baseline)
    return bench_language_model(request, baseline)


def store(records: list[dict[str, Any]], output: Path | None, as_json: bool) -> None:
    """Append the records of one run to the results and show them."""
    path = output or find_month_file()
    try:
        append_results(path, records)
    finally:  # minutes of measuring are not lost to a folder that cannot be written
        show(records, as_json)
    if not as_json:
        where = shell_line("edge", "report", path) if output else "edge report --last"
        echo(f"\nstored in {printable(str(path))}; next: {where}", err=True)


def show(records: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for record in records:
            echo(json.dumps({k: v for k, v in record.items() if k != "traces"}))
    else:
        echo("\n".join(run_lines(group_runs(records)[0])))
