"""`edge plan`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from converters.plan import (
    PREFERENCES,
    Candidate,
    Planner,
    PlanOptions,
    Prefer,
    list_candidates,
    plan_of,
)
from converters.plan_text import candidate_lines, plan_lines
from converters.recipe_weights import WeighingScale
from converters.source.spec import ModelSpec
from device_profiles.catalog import THIS_MACHINE, find_profile
from device_profiles.profile import DeviceProfile
from edge.errors import DoesNotFitError, UsageError
from edge.types import Plan
from edge.units import printable


def load_devices(names: Iterable[str]) -> list[DeviceProfile]:
    """Profiles of ids or aliases, each possibly several joined by commas; `this-machine` is probed.

    Raises ProfileError for an unknown name, UsageError for a board named twice or none at all.
    """
    profiles: dict[str, DeviceProfile] = {}
    for name in (part.strip() for text in names for part in text.split(",")):
        if not name:
            raise UsageError("an empty device name", next_step="edge devices")
        profile = this_machine() if name == THIS_MACHINE else find_profile(name)
        if profile.id in profiles:
            raise UsageError(f"device {profile.id} is named twice")
        profiles[profile.id] = profile
    if not profiles:
        raise UsageError("no device named", next_step="edge devices")
    return list(profiles.values())


def this_machine() -> DeviceProfile:
    """This machine, probed now."""
    from edge.probe.machine import probe_this_machine

    return probe_this_machine()


@click.command(name="plan")
@click.argument("model")
@click.option(
    "-d", "--device", "devices", multiple=True, metavar="BOARD[,BOARD…]",
    help="Board id or alias (see `edge devices`); default: this-machine.",
)  # fmt: skip
@click.option("--recipe", help="Fix the recipe, for example q4_0 or q4_k_m.")
@click.option("--ctx", "n_ctx", type=int, help="Fix the context length in tokens.")
@click.option("--kv-type", help="Fix the KV cache's type: f16, q8_0, …")
@click.option("--threads", "n_threads", type=int, help="Fix the number of threads.")
@click.option("--ubatch", "n_ubatch", type=int, help="Fix the micro-batch of prefill, in tokens.")
@click.option("--prefer", type=click.Choice(PREFERENCES), default="balanced", show_default=True)
@click.option("--explain", is_flag=True, help="Say where every figure comes from.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per board, one per line.")
def plan(
    model: str,
    devices: tuple[str, ...],
    recipe: str | None,
    n_ctx: int | None,
    kv_type: str | None,
    n_threads: int | None,
    n_ubatch: int | None,
    prefer: Prefer,
    explain: bool,
    as_json: bool,
) -> None:
    """What of MODEL fits a board: recipe, context, memory, speed, and why.

    MODEL is a Hugging Face directory, a hub repo id (owner/name), a .gguf file, or `sample`.
    """
    from converters.source.resolve import open_model

    options = PlanOptions(recipe, n_ctx, kv_type, n_threads, n_ubatch, prefer)
    profiles = load_devices(devices or (THIS_MACHINE,))
    spec = open_model(model)
    scale = WeighingScale(spec)
    refused: list[DoesNotFitError] = []
    for number, profile in enumerate(profiles):
        planner = Planner(spec, profile, options, scale=scale)
        if not as_json and number:
            click.echo()
        try:
            chosen = plan_of(planner, planner.choose())
        except DoesNotFitError as error:
            refused.append(error)
            if len(profiles) > 1:
                _echo_refusal(spec, profile, error, as_json)
            continue
        if as_json:
            click.echo(json.dumps(plan_record(spec, planner, chosen)))
        else:
            _echo_plan(spec, planner, chosen, explain)
    if len(profiles) == 1 and refused:
        raise refused[0]
    if refused:
        raise DoesNotFitError(f"{len(refused)} of {len(profiles)} boards cannot hold this model")


def _echo_plan(spec: ModelSpec, planner: Planner, chosen: Plan, explain: bool) -> None:
    for line in plan_lines(planner, chosen, name=spec.name, explain=explain):
        click.echo(line)
    rows = list_candidates(planner)
    if len(rows) > 1:
        click.echo()
        for line in candidate_lines(planner, chosen, rows):
            click.echo(line)


def _echo_refusal(
    spec: ModelSpec, profile: DeviceProfile, error: DoesNotFitError, as_json: bool
) -> None:
    if not as_json:
        click.echo(f"{printable(spec.name)} on {profile.name}\n\n  does not fit: {error}")
        if error.next_step:
            click.echo(f"  {error.next_step}")
        return
    record = {
        "device": profile.id,
        "error": type(error).__name__,
        "message": str(error),
        "shortfall_bytes": error.shortfall_bytes,
        "next_step": error.next_step,
    }
    click.echo(json.dumps(record))


def plan_record(spec: ModelSpec, planner: Planner, chosen: Plan) -> dict[str, Any]:
    """The plan and its candidates as one JSON-able object."""
    return {
        "model": spec.name,
        "device": planner.profile.id,
        "plan": {**chosen.to_dict(), "peak_bytes": chosen.peak_bytes},
        "candidates": [_candidate_record(planner, row) for row in list_candidates(planner)],
    }


def _candidate_record(planner: Planner, row: Candidate) -> dict[str, Any]:
    added = row.weights.perplexity_added
    return {
        "recipe": row.recipe,
        "perplexity_added": added if added != float("inf") else None,
        "artifact_bytes": row.weights.artifact_bytes,
        "n_ctx": row.n_ctx,
        "kv_type": row.kv_type,
        "n_ubatch": row.n_ubatch,
        "use_mmap": row.use_mmap,
        "repack": row.repack,
        "peak_bytes": row.peak_bytes,
        "fits": planner.fits(row),
        "decode_tps": row.speed.decode_tps,
        "prefill_tps": row.speed.prefill_tps,
    }
