"""A plan and the alternative recipes as plain data, for `edge plan --json`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from boardfit.converters.plan.front import dominated_by
from boardfit.converters.plan.make import Candidate, Planner, list_candidates, plan_of
from boardfit.converters.plan.weights import AS_IS
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.speed import load_seconds


def plan_rows(spec: ModelSpec, planner: Planner) -> list[Candidate]:
    """Every recipe looked at, and the file as it stands where there is one."""
    rows = list(list_candidates(planner))
    if spec.source.kind == "gguf" and planner.options.recipe is None:
        as_is = planner.with_options(replace(planner.options, recipe=AS_IS))
        rows += list_candidates(as_is)
    return rows


def plan_record(spec: ModelSpec, planner: Planner, chosen: Candidate) -> dict[str, Any]:
    """The plan and its candidates as one JSON-able object."""
    from boardfit.converters.plan.accelerators import accelerator_record

    made, options = plan_of(planner, chosen), planner.options
    rows = plan_rows(spec, planner)
    return {
        "model": spec.name,
        "device": planner.profile.id,
        "plan": {**made.to_dict(), "peak_bytes": made.peak_bytes},
        "n_users": options.n_users,
        "user_tps": chosen.user_tps(options.n_users),
        "n_prompt": options.n_prompt,
        "ttft_s": chosen.ttft_s(options.n_prompt, options.n_users),
        "load_s": load_seconds(made.artifact_bytes, planner.profile),
        "sustained_share": planner.profile.sustained_share,
        "accelerator": accelerator_record(planner, chosen),
        "decode_bound": chosen.speed.decode_bound,
        "prefill_bound": chosen.speed.prefill_bound,
        "predicted": {
            "basis": planner.profile.basis,
            "decode_tps": chosen.predicted.decode_tps,
            "prefill_tps": chosen.predicted.prefill_tps,
        },
        "measured": None if chosen.measured is None else asdict(chosen.measured),
        "candidates": [_candidate_record(planner, row, rows) for row in rows],
    }


def _candidate_record(planner: Planner, row: Candidate, rows: list[Candidate]) -> dict[str, Any]:
    added = row.weights.perplexity_added
    return {
        "recipe": row.recipe,
        "perplexity_added": added if added != float("inf") else None,
        "artifact_bytes": row.weights.artifact_bytes,
        "n_ctx": row.n_ctx,
        "kv_type": row.kv_type,
        "n_threads": row.n_threads,
        "n_ubatch": row.n_ubatch,
        "use_mmap": row.use_mmap,
        "repack": row.repack,
        "peak_bytes": row.peak_bytes,
        "fits": planner.fits(row),
        "in_time": planner.in_time(row),
        "on_pareto_front": dominated_by(row, rows) is None,
        "decode_tps": row.speed.decode_tps,
        "prefill_tps": row.speed.prefill_tps,
        "measured": row.measured is not None,
    }
