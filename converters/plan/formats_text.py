"""`edge plan --format`: plans of formats side by side, and which of them `auto` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from boardfit.converters.build.jobs import plan_any
from boardfit.converters.formats.choose import answer_seconds, divergence_ratio
from boardfit.converters.formats.table import AUTO, FORMATS
from boardfit.converters.plan.converted import format_of_engine
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import EdgeError
from boardfit.edge.report.terminal import align_columns
from boardfit.edge.types import Plan
from boardfit.edge.units import format_bytes, format_seconds, printable


def echo_format_plans(
    spec: ModelSpec,
    profiles: Sequence[DeviceProfile],
    formats: Sequence[str],
    options: PlanOptions,
    learned: Learned,
    *,
    as_json: bool,
) -> None:
    """One plan per board and format on stdout. A refusal is shown where there are several, raised
    where it is the only one.
    """
    wanted = list(FORMATS) if AUTO in formats else list(formats)
    for number, profile in enumerate(profiles):
        plans: dict[str, Plan] = {}
        refused: dict[str, EdgeError] = {}
        for name in wanted:
            try:
                plans[name] = plan_any(spec, profile, name, options, learned)
            except EdgeError as error:
                if len(profiles) * len(wanted) == 1:
                    raise
                refused[name] = error
        taken = plan_any(spec, profile, AUTO, options, learned) if AUTO in formats else None
        if as_json:
            for name, plan in plans.items():
                click.echo(json.dumps(record(spec, name, plan, taken)))
            for name, why in refused.items():
                click.echo(json.dumps(refusal(profile, name, why)))
            continue
        click.echo(("\n" if number else "") + f"{printable(spec.name)} on {profile.name}\n")
        click.echo("\n".join(lines(plans, refused, taken, options)))


def lines(
    plans: dict[str, Plan],
    refused: dict[str, EdgeError],
    taken: Plan | None,
    options: PlanOptions,
) -> list[str]:
    """A table of the plans, then the reasons of the one taken, or of a single one."""
    rows = [("format", "recipe", "context", "file", "peak", "prefill", "decode",
             f"answer to {options.n_prompt}", "divergence / Q4_0")]  # fmt: skip
    for name, plan in plans.items():
        ratio = divergence_ratio(plan.recipe)
        rows.append(
            (
                name,
                plan.recipe,
                str(plan.n_ctx),
                format_bytes(plan.artifact_bytes),
                format_bytes(plan.peak_bytes),
                "–" if plan.prefill_tps is None else f"{plan.prefill_tps:.0f}",
                "–" if plan.decode_tps is None else f"{plan.decode_tps:.1f}",
                format_seconds(answer_seconds(plan, options.n_prompt)),
                "–" if ratio is None else f"{ratio:.2f}",
            )
        )
    found = align_columns(rows)
    found += [f"  {name}: {error}" for name, error in refused.items()]
    explained = taken or (next(iter(plans.values())) if len(plans) == 1 else None)
    if taken is not None:
        found += ["", f"  auto takes {format_of_engine(taken.engine).id}:"]
    if explained is not None:
        found += [f"    {reason}" for reason in explained.reasons]
    return found


def record(spec: ModelSpec, name: str, plan: Plan, taken: Plan | None) -> dict[str, Any]:
    """One plan as a JSON-able object."""
    return {
        "model": spec.name,
        "device": plan.device,
        "format": name,
        "taken": None if taken is None else taken.engine == plan.engine,
        "plan": {**plan.to_dict(), "peak_bytes": plan.peak_bytes},
        "divergence_ratio": divergence_ratio(plan.recipe),
    }


def refusal(profile: DeviceProfile, name: str, error: EdgeError) -> dict[str, Any]:
    return {
        "device": profile.id,
        "format": name,
        "error": type(error).__name__,
        "message": str(error),
        "next_step": error.next_step,
    }
