"""`edge bench`: measure a bundle (or a GGUF file) on this machine and store the results."""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from boardfit.edge.bench.conditions import machine_state
from boardfit.edge.bench.cooling import wait_until_cool
from boardfit.edge.bench.deadline_options import (
    check_alone,
    parse_workload,
    workload_options,
    workload_words,
)
from boardfit.edge.bench.deadline_record import workload_records
from boardfit.edge.bench.network import is_network, measure_network, network_records
from boardfit.edge.bench.network_folder import is_network_folder, open_network_folder
from boardfit.edge.bench.network_inputs import parse_shapes
from boardfit.edge.bench.record import Subject, make_records
from boardfit.edge.bench.runner import TestRun, measure_load, run_tests
from boardfit.edge.bench.sampler import read_memory
from boardfit.edge.bench.store import append_results, data_directory
from boardfit.edge.bench.sustained import run_sustained
from boardfit.edge.bench.workloads import make_tests
from boardfit.edge.engines import open_engine
from boardfit.edge.engines.model_file import model_file
from boardfit.edge.engines.settings import default_threads
from boardfit.edge.engines.target import OpenModel, engine_of, open_model
from boardfit.edge.errors import UsageError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.option_groups import GroupedCommand
from boardfit.edge.process.live import publish_model, publish_status
from boardfit.edge.report.figures import group_runs
from boardfit.edge.report.terminal import run_lines
from boardfit.edge.terminal import ProgressLine
from boardfit.edge.units import format_seconds, printable

MIN_REPEATS = 5
# Inferences of a network per repetition that is asked for: a hundred by default.
N_PER_REPEAT, N_PER_REPEAT_QUICK = 20, 4


@click.command(cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Append results to this file."
)
@click.option(
    "--quick",
    is_flag=True,
    help="Use short prompts and answers; a small model takes under a minute.",
)
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
    "--repeats", type=click.IntRange(min=1), default=MIN_REPEATS, show_default=True,
    help="Number of repetitions of each test.",
)  # fmt: skip
@click.option("--gen", "n_gen", type=click.IntRange(min=2), help="Tokens per decode test.")
@click.option(
    "--threads",
    "n_threads",
    type=click.IntRange(min=1),
    help="Number of threads. [default: the plan's]",
)
@click.option(
    "--ctx",
    "n_ctx",
    type=click.IntRange(min=64),
    help="Context length, in tokens. [default: the plan's]",
)
@click.option("--kv-type", help="Type of the KV cache. [default: the plan's]")
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224",
    help="Shape of an input with open dimensions (networks other than language models).",
)  # fmt: skip
@click.option(
    "--no-memory-check", is_flag=True, help="Load the model even if memory looks too short."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result lines on stdout instead of a report."
)
@workload_options
@publish_status("bench")
def bench(
    model: Path,
    output: Path | None,
    quick: bool,
    protocol: str | None,
    minutes: float,
    cool_below: float | None,
    repeats: int,
    n_gen: int | None,
    n_threads: int | None,
    n_ctx: int | None,
    kv_type: str | None,
    shapes: tuple[str, ...],
    no_memory_check: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure MODEL (a bundle or a model file): memory, TTFT, prefill, decode and load.

    With --within or --workload, measure how many of a task's requests are answered in time.

    For any other network (an .onnx or .tflite file, or the output of `edge build`), measure
    latency, memory and load. The inputs are made from its signature.

    Every test starts with a discarded warm-up and has at least five repetitions, taken in turns.
    Results keep their raw timestamps; `edge report` renders them.
    """
    if re.match(r"\w+:/", str(model)):  # a path has lost one slash of two
        target = str(model).replace(":/", "://", 1)
        raise UsageError(
            f"{target} is a board; this measures here",
            next_step=f"edge slots bench {target} measures there and brings the results back",
        )
    if quick and protocol == "standard":
        raise UsageError("--quick and --protocol standard exclude each other")
    workload = parse_workload(asked)
    if workload is not None:
        check_alone(workload, {"--quick": quick, "--protocol": protocol, "--gen": n_gen})
    quick, sustained = quick or protocol in ("quick", "sustained"), protocol == "sustained"
    baseline = read_memory()
    if is_network(model):
        if workload is not None:
            raise UsageError("--workload and --within need a language model")
        bar = TestProgress()
        n_threads = n_threads or default_threads()
        built = open_network_folder(model) if is_network_folder(model) else None
        network = built.file if built else model_file(model)
        measured = measure_network(
            network,
            n_threads=n_threads,
            n_runs=repeats * (N_PER_REPEAT_QUICK if quick else N_PER_REPEAT),
            shapes=parse_shapes(shapes),
            check_memory=not no_memory_check,
            progress=bar,
        )
        bar.close()
        repeat = command_line(model, quick, repeats, n_gen, n_threads, n_ctx, kv_type)
        words = " ".join(f"--shape {shlex.quote(shape)}" for shape in shapes)
        store(
            network_records(
                measured, network, f"{repeat} {words}".strip(), asdict(baseline), built
            ),
            output,
            as_json,
        )
        return
    if shapes:
        raise UsageError("--shape is for networks other than language models")
    line = ProgressLine("loading")
    opened = open_model(
        model,
        progress=line,
        n_threads=n_threads,
        n_ctx=n_ctx,
        kv_type=kv_type,
        check_memory=False if no_memory_check else None,
        n_draft=workload.n_draft if workload is not None else None,
    )
    line.close()
    model_path = opened.bundle.model_path if opened.bundle else opened.path
    if workload is not None:
        publish_model(opened.name, opened.engine.describe())
        flag, bar = None, TestProgress()
        if cool_below is not None:
            flag = wait_until_cool(cool_below, say=lambda text: click.echo(text, err=True))
        repeat = command_line(model, False, MIN_REPEATS, None, n_threads, n_ctx, kv_type)
        made = workload_records(
            opened, model_path, workload, subject_of(opened, model_path),
            f"{repeat} {workload_words(workload, asked)}", asdict(baseline),
            flag=flag, progress=bar,
        )  # fmt: skip
        bar.close()
        store(made, output, as_json)
        return
    publish_model(opened.name, opened.engine.describe())
    repeat = command_line(model, quick, repeats, n_gen, n_threads, n_ctx, kv_type)
    if sustained:
        repeat = repeat.replace("--quick", f"--protocol sustained --minutes {minutes:g}", 1)
    warm = None
    if cool_below is not None:
        repeat += f" --cool-below {cool_below:g}"
        warm = wait_until_cool(cool_below, say=lambda text: click.echo(text, err=True))
    bar = TestProgress()
    records = measure_model(
        opened, repeat, asdict(baseline), quick=quick, repeats=repeats, n_gen=n_gen,
        sustained_s=60 * minutes if sustained else None, flag=warm, progress=bar,
    )  # fmt: skip
    store(records, output, as_json)


def measure_model(
    opened: OpenModel,
    command: str,
    baseline: dict[str, Any],
    *,
    quick: bool,
    repeats: int = MIN_REPEATS,
    n_gen: int | None = None,
    sustained_s: float | None = None,
    flag: str | None = None,
    progress: TestProgress | None = None,
) -> list[dict[str, Any]]:
    """The records of every test of an open language model, which is closed then. `command` repeats
    the run, `baseline` is this process's memory before the model was opened, `flag` marks all runs.
    """
    bar = progress or TestProgress(quiet=True)
    with closing(opened.engine) as engine:
        info = engine.describe()
        tests, before = make_tests(engine.n_ctx, quick=quick, n_gen=n_gen), machine_state()
        runs = run_tests(engine, tests, repeats=repeats, progress=bar)
        if sustained_s is not None:
            runs.append(run_sustained(engine, seconds=sustained_s, progress=bar))
        bar.close()
        states = {"before": before, "after": machine_state()}
        for run in runs:
            run.flags += [flag] if flag else []
    model_path = opened.bundle.model_path if opened.bundle else opened.path
    runs += load_runs(info.name, opened, model_path, repeats=min(repeats, MIN_REPEATS))
    subject = subject_of(opened, model_path)
    return make_records(runs, subject, info, command, baseline, states=states)


def store(records: list[dict[str, Any]], output: Path | None, as_json: bool) -> None:
    """Append the records of one run to the results and show them."""
    stamp = datetime.now(timezone.utc).strftime("%Y-%m")
    path = output or data_directory() / f"{stamp}.jsonl"
    append_results(path, records)
    if as_json:
        for record in records:
            click.echo(json.dumps({k: v for k, v in record.items() if k != "traces"}))
        return
    run = group_runs(records)[0]
    click.echo("\n".join(run_lines(run)))
    where = f"edge report {path}" if output else "edge report --last"
    click.echo(f"\nstored in {path}; next: {where}", err=True)


def load_runs(
    engine_name: str, opened: OpenModel, model_path: Path, *, repeats: int
) -> list[TestRun]:
    """Cold and warm loads, each from a closed engine."""
    runs = []
    for cold in (True, False):
        run = measure_load(
            lambda: open_engine(engine_name, opened.model, opened.settings),
            model_path,
            repeats=repeats,
            cold=cold,
        )
        runs.append(run)
    return runs


def subject_of(opened: OpenModel, model_path: Path) -> Subject:
    bundle = opened.bundle
    arch = bundle.manifest["model"].get("arch") if bundle else None
    if arch is None and engine_of(opened.model) == "llama_cpp":
        arch = read_header(opened.model).arch
    return Subject(
        name=printable(opened.name),
        sha256=bundle.model_file.sha256 if bundle else None,
        n_bytes=opened.model.stat().st_size,
        bundle_id=bundle.id if bundle else None,
        arch=arch,
        license=bundle.manifest["model"].get("license") if bundle else None,
        plan=opened.plan,
        quality=bundle.manifest.get("quality") if bundle else None,
    )


def command_line(model: Path, quick: bool, repeats: int, *options: object) -> str:
    """The command that repeats this run, without folders of this machine."""
    names = ("--gen", "--threads", "--ctx", "--kv-type")
    words = ["edge", "bench", model.name, *(["--quick"] if quick else [])]
    words += ["--repeats", str(repeats)] if repeats != MIN_REPEATS else []
    for name, value in zip(names, options, strict=True):
        words += [name, str(value)] if value is not None else []
    return shlex.join(words)


class TestProgress:
    """One line on a terminal: which test runs, how far, how long to go."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._start = datetime.now(timezone.utc)
        self._stream = sys.stderr
        self._live = not quiet and self._stream.isatty()

    def __call__(self, done: int, total: int, label: str) -> None:
        if not self._live:
            return
        elapsed = (datetime.now(timezone.utc) - self._start).total_seconds()
        left = format_seconds(elapsed / done * (total - done)) if done else "–"
        self._stream.write(f"\r\x1b[Kmeasuring {done}/{total}  {label}  {left} to go")
        self._stream.flush()

    def close(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
