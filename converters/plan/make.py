"""Plan a model for a board: recipe, context, KV type, threads, batch, loading.

plan = make_plan(spec, find_profile("raspberry-pi-5-8gb"), PlanOptions(n_ctx=4096))
"""

from __future__ import annotations

from dataclasses import replace

from boardfit.converters.formats.base import AUTO, FORMATS, GGUF
from boardfit.converters.formats.gguf.recipe import AS_IS
from boardfit.converters.plan.auto import choose_format
from boardfit.converters.plan.candidate import Candidate
from boardfit.converters.plan.choose import choose_candidate
from boardfit.converters.plan.converted import plan_format
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PREFERENCES, PlanOptions, Prefer
from boardfit.converters.plan.planner import ENGINE, Planner
from boardfit.converters.plan.reasons import explain_choice
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import EdgeError
from boardfit.edge.types import Plan

__all__ = [
    "PREFERENCES",
    "Candidate",
    "PlanOptions",
    "Planner",
    "Prefer",
    "assemble_plan",
    "list_alternatives",
    "list_candidates",
    "make_plan",
    "plan_any",
]


def plan_any(
    spec: ModelSpec,
    device: DeviceProfile,
    format_id: str,
    options: PlanOptions,
    learned: Learned,
) -> Plan:
    """Make the plan for one format, or for the one that `auto` takes."""
    if format_id != AUTO:
        target = FORMATS[format_id]
        if target.is_streamed:
            return make_plan(spec, device, options, learned=learned)
        return plan_format(spec, device, target, options, learned=learned)
    plans = {GGUF: plan_any(spec, device, GGUF, options, learned)}
    refused: dict[str, str] = {}
    for name in [name for name in FORMATS if name not in plans]:
        try:
            plans[name] = plan_any(spec, device, name, options, learned)
        except EdgeError as error:
            refused[name] = str(error)
    choice = choose_format(plans, options.n_prompt, refused)
    return replace(choice.plan, reasons=(*choice.reasons, *choice.plan.reasons))


def make_plan(
    spec: ModelSpec,
    profile: DeviceProfile,
    options: PlanOptions | None = None,
    *,
    learned: Learned | None = None,
) -> Plan:
    """Make the plan for one model as GGUF on one board; `learned` results replace estimates.

    Raises DoesNotFitError (shortfall in bytes, nearest change that fits), DeadlineError when it
    fits but not in the time asked for, InputError for a context beyond the trained one, UsageError
    for an unknown recipe.
    """
    planner = Planner(spec, profile, options or PlanOptions(), learned=learned)
    return assemble_plan(planner, choose_candidate(planner))


def assemble_plan(planner: Planner, chosen: Candidate) -> Plan:
    """Assemble the plan of a candidate, with its reasons."""
    reasons, rejected = explain_choice(planner, chosen)
    memory, speed = chosen.cost.memory, chosen.speed
    return Plan(
        engine=ENGINE,
        recipe=chosen.recipe,
        device=planner.profile.id,
        n_ctx=chosen.n_ctx,
        kv_type=chosen.kv_type,
        n_threads=chosen.n_threads,
        n_batch=chosen.n_ubatch,
        n_ubatch=chosen.n_ubatch,
        use_mmap=chosen.use_mmap,
        repack=chosen.repack,
        artifact_bytes=chosen.weights.artifact_bytes,
        memory=chosen.memory,
        loading_bytes=memory.loading_total,
        running_bytes=memory.running_total,
        peak_anonymous_bytes=memory.peak_anonymous,
        budget_bytes=planner.budget_bytes,
        decode_tps=speed.decode_tps,
        prefill_tps=speed.prefill_tps,
        error_bound=speed.decode_bound if speed.decode_tps else None,
        basis=chosen.describe_basis(planner.profile),
        reasons=tuple(reasons),
        rejected=tuple(rejected),
    )


def list_candidates(planner: Planner) -> list[Candidate]:
    """List each recipe at its highest rung that fits, or at its lowest when none does; the most
    preferred first.
    """
    found: dict[str, Candidate] = {}
    for weights, n_ctx in reversed(planner.list_rungs()):
        held = found.get(weights.recipe.id)
        if held is None or not planner.fits(held):
            found[weights.recipe.id] = planner.find_best(weights, n_ctx)
    return list(found.values())


def list_alternatives(planner: Planner) -> list[Candidate]:
    """List the candidates, and the file as it stands where there is one."""
    rows = list_candidates(planner)
    if planner.spec.source.kind == "gguf" and planner.options.recipe is None:
        as_is = planner.with_options(replace(planner.options, recipe=AS_IS))
        rows += list_candidates(as_is)
    return rows
