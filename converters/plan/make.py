"""Plan a model for a board: recipe, context, KV type, threads, batch, loading.

plan = make_plan(spec, find_profile("raspberry-pi-5-8gb"), PlanOptions(n_ctx=4096))
"""

from __future__ import annotations

from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PREFERENCES, PlanOptions, Prefer
from boardfit.converters.plan.planner import ENGINE, Candidate, Planner
from boardfit.converters.plan.reasons import explain_choice
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.types import Plan

__all__ = [
    "PREFERENCES",
    "Candidate",
    "PlanOptions",
    "Planner",
    "Prefer",
    "candidates",
    "list_candidates",
    "make_plan",
    "plan_of",
]


def candidates(
    spec: ModelSpec, profile: DeviceProfile, options: PlanOptions | None = None
) -> tuple[Candidate, ...]:
    """Every recipe at the context that the plan would take with it, most preferred first."""
    return list_candidates(Planner(spec, profile, options or PlanOptions()))


def list_candidates(planner: Planner) -> tuple[Candidate, ...]:
    """As `candidates`, for a planner at hand: each recipe at its highest rung that fits, or at its
    lowest when none does.
    """
    found: dict[str, Candidate] = {}
    for weights, n_ctx in reversed(planner.rungs()):
        held = found.get(weights.recipe.id)
        if held is None or not planner.fits(held):
            found[weights.recipe.id] = planner.best(weights, n_ctx)
    return tuple(found.values())


def make_plan(
    spec: ModelSpec,
    profile: DeviceProfile,
    options: PlanOptions | None = None,
    *,
    learned: Learned | None = None,
) -> Plan:
    """The plan for one model on one board; `learned` results stand in for estimates.

    Raises DoesNotFitError (shortfall in bytes, nearest change that fits), DeadlineError when it
    fits but not in the time asked for, InputError for a context beyond the trained one, UsageError
    for an unknown recipe.
    """
    planner = Planner(spec, profile, options or PlanOptions(), learned=learned)
    return plan_of(planner, planner.choose())


def plan_of(planner: Planner, chosen: Candidate) -> Plan:
    """The candidate as a plan, with its reasons."""
    reasons, rejected = explain_choice(planner, chosen)
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
        loading_bytes=chosen.phases.loading_total,
        running_bytes=chosen.phases.running_total,
        peak_anonymous_bytes=chosen.phases.peak_anonymous,
        budget_bytes=planner.budget_bytes,
        decode_tps=chosen.speed.decode_tps,
        prefill_tps=chosen.speed.prefill_tps,
        error_bound=chosen.speed.decode_bound if chosen.speed.decode_tps else None,
        basis="measured here" if chosen.measured else planner.profile.basis,
        reasons=tuple(reasons),
        rejected=tuple(rejected),
    )
