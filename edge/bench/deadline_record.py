"""Measure a language model with a workload: the usual records, with an entry `deadline`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from boardfit.edge.bench.conditions import machine_state
from boardfit.edge.bench.deadline_run import Workload, run_workload
from boardfit.edge.bench.language_model import (
    cool_down,
    describe_artifact,
    model_path,
    open_for_bench,
)
from boardfit.edge.bench.record import make_records
from boardfit.edge.bench.request import BenchRequest
from boardfit.edge.terminal.progress import ProgressLine


def bench_workload(
    request: BenchRequest, workload: Workload, baseline: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Run the workload and make a record of its warm part, and one of its cold part. `baseline` is
    this process's memory before.
    """
    opened = open_for_bench(request)
    flag, path = cool_down(request), model_path(opened)
    artifact = describe_artifact(opened)
    with closing(opened.engine) as engine, closing(ProgressLine("measuring")) as line:
        info, before = engine.describe(), machine_state()
        runs = run_workload(opened, path, workload, line)
    states = {"before": before, "after": machine_state()}
    for run in runs:
        run.flags += [flag] if flag else []
    made = make_records(
        list(runs), artifact, info, request.repeat_command(), baseline, states=states
    )
    return [{**record, "deadline": run.section()} for record, run in zip(made, runs, strict=True)]
