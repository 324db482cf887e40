"""Plan a model for a board: format, recipe, context, KV type, threads, batch, loading.

plan = make_plan(spec, find_profile("raspberry-pi-5-8gb"), PlanOptions(n_ctx=4096))

`auto` takes the format that answers soonest at similar quality. An answer of `N_ANSWER` tokens to a
prompt of the plan's length is timed with each format's plan. Formats whose recipe was measured to
diverge from the source more than `MOST_DIVERGENCE` times what GGUF's Q4_0 does, on the same model
and text, are not considered; nor is a gain below `MARGIN`, for which a GGUF is kept: it maps its
weights, and everything reads it.
"""

from collections.abc import Mapping
from dataclasses import replace

from boardfit.converters.formats.base import (
    AUTO,
    FORMATS,
    GGUF,
    FormatRow,
    FormatWeights,
    format_of_engine,
)
from boardfit.converters.formats.converted import KV_TYPE, ConvertedFormat, prefill_lengths
from boardfit.converters.formats.gguf.recipe import AS_IS
from boardfit.converters.formats.measured import divergence_ratio
from boardfit.converters.plan.candidate import Candidate
from boardfit.converters.plan.choose import choose_candidate
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import ENGINE, Planner
from boardfit.converters.plan.reasons import explain_choice
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.speed import default_threads, estimate_speed
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DoesNotFitError, EdgeError, InputError, UsageError
from boardfit.edge.types import Plan
from boardfit.edge.units import format_bytes, format_seconds

N_ANSWER = 64
MOST_DIVERGENCE = 1.5
MARGIN = 1.15
# A predicted size knows neither graph nor tokenizer files exactly.
_PREDICTED_SIZE = 0.2
_CONTEXT_STEPS = (4096, 2048, 1024, 512)
# Formats as close as this answer at the same time: of them, the one that diverges least is taken.
_CLOSE = 1.05


def plan_any(
    spec: ModelSpec, device: DeviceProfile, format_id: str, options: PlanOptions, learned: Learned
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
    return choose_format(plans, options.n_prompt, refused)


def answer_seconds(plan: Plan, n_prompt: int) -> float | None:
    """Prefill of the prompt and decode of an answer; None where the plan knows no speed."""
    if not plan.prefill_tps or not plan.decode_tps:
        return None
    return n_prompt / plan.prefill_tps + N_ANSWER / plan.decode_tps


def choose_format(plans: Mapping[str, Plan], n_prompt: int, refused: Mapping[str, str]) -> Plan:
    """One of `plans` (by format; GGUF is among them), with the reasons put in front. `refused` are
    the formats that cannot be made for the board, and why.
    """

    def taken(plan: Plan, why: str) -> Plan:
        return replace(plan, reasons=(*reasons, why, *plan.reasons))

    base = plans[GGUF]
    others = {name: plan for name, plan in plans.items() if plan is not base}
    reasons = [f"{name} is out: {why}" for name, why in refused.items()]
    base_s = answer_seconds(base, n_prompt)
    question = f"a prompt of {n_prompt} tokens answered with {N_ANSWER}"
    if base_s is None:
        return taken(base, "gguf: no speed is known for this board to compare by")
    best, best_s = base, base_s
    candidates: dict[str, tuple[float, float]] = {}
    for name, plan in others.items():
        seconds, ratio = answer_seconds(plan, n_prompt), divergence_ratio(plan.recipe)
        if seconds is None:
            continue
        if ratio is None or ratio > MOST_DIVERGENCE:
            quality_text = "was not measured" if ratio is None else f"is {ratio:.1f} times Q4_0's"
            reasons.append(f"{name} is out: the divergence of {plan.recipe} {quality_text}")
        else:
            candidates[name] = (seconds, ratio)
    if candidates:
        soonest = min(seconds for seconds, _ in candidates.values())
        close = {n: r for n, (s, r) in candidates.items() if s <= soonest * _CLOSE}
        found = min(close, key=lambda n: close[n])
        if candidates[found][0] < base_s:
            best, best_s = plans[found], candidates[found][0]
    name = format_of_engine(best.engine).id
    if best is base or base_s / best_s < MARGIN:
        times = [s for plan in others.values() if (s := answer_seconds(plan, n_prompt))]
        against = f", the next format in {format_seconds(min(times))}" if times else ""
        return taken(base, f"gguf: {question} in {format_seconds(base_s)}{against}")
    ratio = divergence_ratio(best.recipe)
    return taken(
        best,
        f"{name}: {question} in {format_seconds(best_s)} instead of {format_seconds(base_s)} with "
        f"gguf; divergence {ratio:.2f} times Q4_0's where both were measured",
    )


def make_plan(
    spec: ModelSpec,
    profile: DeviceProfile,
    options: PlanOptions | None = None,
    *,
    learned: Learned | None = None,
) -> Plan:
    """Make the plan for one model as GGUF on one board; `learned` results replace estimates. Raises
    DoesNotFitError (shortfall in bytes, nearest change that fits), DeadlineError when only time is
    short, InputError for a context beyond the trained one, UsageError for an unknown recipe.
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


def plan_format(
    spec: ModelSpec,
    profile: DeviceProfile,
    target: FormatRow,
    options: PlanOptions,
    *,
    learned: Learned | None = None,
) -> Plan:
    """Plan one format on one board. Raises what `check_supported` does, UsageError for an unknown
    recipe or an option the format does not have, DoesNotFitError with the shortfall when no context
    fits.
    """
    rules = target.load()
    assert isinstance(rules, ConvertedFormat)  # a streamed format has the planner
    rules.check_supported(spec, profile)
    if options.kv_type not in (None, KV_TYPE):
        raise UsageError(
            f"{target.id}: the KV cache is {KV_TYPE}; --kv-type {options.kv_type} is GGUF's alone"
        )
    recipe = options.recipe or rules.row.recipe
    weights = rules.weigh(spec, recipe)
    n_ctx, memory = _find_fit(spec, profile, rules, weights, options)
    n_threads = options.n_threads or default_threads(profile)
    if n_threads > profile.n_cores:
        raise UsageError(f"{n_threads} threads on {profile.name}, which has {profile.n_cores}")
    speed = estimate_speed(
        weights.tensors, spec.shape, profile, n_threads=n_threads, kv_type=KV_TYPE,
        repack=True, engine=rules.engine_class,
    )  # fmt: skip
    artifact_bytes, n_batch = weights.artifact_bytes, max(prefill_lengths(n_ctx))
    measured = (
        learned.find(profile, recipe, spec.arch, artifact_bytes, _PREDICTED_SIZE)
        if learned is not None and options.n_threads is None
        else None
    )
    decode = (measured and measured.decode_tps) or speed.decode_tps
    prefill = (measured and measured.prefill_tps) or speed.prefill_tps
    reasons = [f"{rules.row.id}: {rules.row.about}"]
    reasons.append(f"recipe {recipe}: {rules.describe_recipe(recipe)}")
    if n_ctx < spec.shape.n_ctx_train and options.n_ctx is None:
        cache = format_bytes(memory["kv_cache"])
        reasons.append(f"context {n_ctx}: the cache is allocated whole, in float32: {cache}")
    if measured is not None:
        reasons.append(f"speed as measured here on {measured.time[:10]}")
    return Plan(
        engine=target.engine,
        recipe=recipe,
        device=profile.id,
        n_ctx=n_ctx,
        kv_type=KV_TYPE,
        n_threads=(measured and measured.n_threads) or n_threads,
        n_batch=n_batch,
        n_ubatch=n_batch,
        use_mmap=True,
        repack=True,
        artifact_bytes=artifact_bytes,
        memory=memory,
        budget_bytes=profile.free_ram_bytes,
        decode_tps=decode,
        prefill_tps=prefill,
        error_bound=(measured.bound if measured else speed.decode_bound) if decode else None,
        basis="measured here" if measured else profile.basis,
        reasons=tuple(reasons),
    )


def _find_fit(
    spec: ModelSpec,
    profile: DeviceProfile,
    rules: ConvertedFormat,
    weights: FormatWeights,
    options: PlanOptions,
) -> tuple[int, dict[str, int]]:
    """The longest context that fits, and its memory. Raises DoesNotFitError where none does."""
    for n_ctx in _list_contexts(spec, options):
        memory = rules.predict_memory(spec, weights, n_ctx)
        if sum(memory.values()) <= profile.free_ram_bytes:
            return n_ctx, memory
    needed, budget = sum(memory.values()), profile.free_ram_bytes
    raise DoesNotFitError(
        f"{options.recipe or rules.row.recipe} with a context of {n_ctx} needs "
        f"{format_bytes(needed)} on {profile.name}, "
        f"which leaves {format_bytes(budget)} free: {needed - budget} bytes too much",
        shortfall_bytes=needed - budget,
        next_step="a GGUF needs less (--format gguf), or take a smaller model",
    )


def _list_contexts(spec: ModelSpec, options: PlanOptions) -> list[int]:
    """Contexts to try, the longest first. Raises InputError for one beyond training."""
    trained = spec.shape.n_ctx_train
    if options.n_ctx is None:
        return sorted({min(step, trained) for step in _CONTEXT_STEPS}, reverse=True)
    if options.n_ctx > trained:
        raise InputError(
            f"a context of {options.n_ctx} is beyond the {trained} tokens that this model was "
            "trained for",
            next_step=f"use --ctx {trained} or less",
        )
    return [options.n_ctx]
