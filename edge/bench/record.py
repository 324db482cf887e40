"""From finished runs to result records (see `edge.bench.store`)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from edge import __version__
from edge.bench.conditions import machine_facts
from edge.bench.runner import TestRun
from edge.types import EngineInfo, Plan, Trace


@dataclass(frozen=True)
class Subject:
    """What was measured: the artifact's name, path-free identity, and the plan when it has one."""

    name: str
    sha256: str | None
    n_bytes: int
    bundle_id: str | None = None
    arch: str | None = None
    license: str | None = None
    plan: Plan | None = None


def make_records(
    runs: list[TestRun],
    subject: Subject,
    engine: EngineInfo,
    repeat_command: str,
    baseline: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """One record per run, all with the same run id, time and machine facts."""
    shared: dict[str, Any] = {
        "run_id": uuid.uuid4().hex,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kit": {"version": __version__},
        "engine": {**asdict(engine), "details": dict(engine.details)},
        "artifact": {
            key: getattr(subject, key)
            for key in ("name", "sha256", "n_bytes", "bundle_id", "arch", "license")
        },
        "board": subject.plan.device if subject.plan else None,
        "machine": machine_facts(),
        "settings": {
            "n_ctx": engine.n_ctx,
            "n_threads": engine.n_threads,
            "n_batch": engine.n_batch,
            "kv_type": engine.kv_type,
            "recipe": subject.plan.recipe if subject.plan else None,
        },
        "predicted": predicted(subject.plan),
        "baseline": dict(baseline),
        "repeat": repeat_command,
    }
    return [
        {
            **shared,
            "test": {
                **asdict(run.test),
                "label": run.test.label,
                "n_repeats": len(run.figures),
                "prompt_sha256": run.prompt_sha256,
            },
            "metrics": run.metrics(),
            "flags": run.flags,
            "traces": [compact_trace(trace) for trace in run.traces],
            "figures": run.figures,
        }
        for run in runs
    ]


def predicted(plan: Plan | None) -> dict[str, Any] | None:
    """The plan's promises, to stand beside what was measured."""
    if plan is None:
        return None
    return {
        "device": plan.device,
        "decode_tps": plan.decode_tps,
        "prefill_tps": plan.prefill_tps,
        "peak_bytes": plan.peak_bytes,
        "anonymous_bytes": plan.anonymous_bytes,
        "error_bound": plan.error_bound,
        "basis": plan.basis,
    }


def compact_trace(trace: Trace) -> dict[str, Any]:
    """A trace as numbers relative to its start: token times in ns, memory as rows."""
    start = trace.request_start_ns
    return {
        "n_prompt": trace.n_prompt,
        "n_reused": trace.n_reused,
        "prefill_end_ns": None if trace.prefill_end_ns is None else trace.prefill_end_ns - start,
        "token_t_ns": [e.t_ns - start for e in trace.events if e.token_id is not None],
        "end_ns": trace.request_end_ns - start,
        "memory": [
            [m.t_ns - start, m.rss_bytes, m.anon_bytes, m.file_bytes, m.pss_bytes, m.swap_bytes]
            for m in trace.memory
        ],
        "heat": [[h.t_ns - start, h.temp_c, h.clock_hz, h.throttled] for h in trace.heat],
    }
