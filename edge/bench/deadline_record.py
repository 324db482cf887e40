"""From a workload's runs to result records: the usual ones, with an entry `deadline`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from boardfit.edge.bench.conditions import machine_state
from boardfit.edge.bench.deadline_run import Progress, Workload, run_workload
from boardfit.edge.bench.record import Subject, make_records
from boardfit.edge.engines.target import OpenModel


def workload_records(
    opened: OpenModel,
    model_path: Path,
    workload: Workload,
    subject: Subject,
    repeat_command: str,
    baseline: Mapping[str, Any],
    *,
    flag: str | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run the workload and make a record of its warm part, and one of its cold part. `flag` is a
    disturbance known before. The engine of `opened` is closed afterwards.
    """
    with closing(opened.engine) as engine:
        info, before = engine.describe(), machine_state()
        runs = run_workload(opened, model_path, workload, progress)
    states = {"before": before, "after": machine_state()}
    for run in runs:
        run.flags += [flag] if flag else []
    made = make_records(list(runs), subject, info, repeat_command, baseline, states=states)
    return [{**record, "deadline": run.section()} for record, run in zip(made, runs, strict=True)]
