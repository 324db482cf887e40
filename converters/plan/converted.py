"""Plan a format that a converter makes: what fits the board, and how fast it is likely to be.

Memory is the format's (`boardfit.converters.formats.converted`). Speed is that of the engine's
class, fitted on published rows (`boardfit.device_profiles.cost`).
"""

from __future__ import annotations

from collections.abc import Sequence

from boardfit.converters.formats.base import FormatRow, FormatWeights
from boardfit.converters.formats.converted import KV_TYPE, ConvertedFormat, prefill_lengths
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.speed import default_threads, estimate_speed
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import DoesNotFitError, InputError, UsageError
from boardfit.edge.types import Plan
from boardfit.edge.units import format_bytes

# A predicted size knows neither graph nor tokenizer files exactly.
_PREDICTED_SIZE = 0.2
_CONTEXT_STEPS = (4096, 2048, 1024, 512)


def plan_format(
    spec: ModelSpec,
    profile: DeviceProfile,
    target: FormatRow,
    options: PlanOptions,
    *,
    learned: Learned | None = None,
) -> Plan:
    """Plan one format on one board.

    Raises what `check_supported` does, UsageError for an unknown recipe or an option the format
    does not have, DoesNotFitError with the shortfall when no context fits.
    """
    rules = target.load()
    assert isinstance(rules, ConvertedFormat)  # a streamed format has the planner
    rules.check_supported(spec, profile)
    if options.kv_type not in (None, KV_TYPE):
        raise UsageError(
            f"{target.id}: the KV cache is {KV_TYPE}; --kv-type {options.kv_type} is GGUF's alone"
        )
    recipe = options.recipe or target.recipe
    weights = rules.weigh(spec, recipe)
    trained = spec.shape.n_ctx_train
    if options.n_ctx is not None and options.n_ctx > trained:
        raise InputError(
            f"a context of {options.n_ctx} is beyond the {trained} tokens that this model was "
            "trained for",
            next_step=f"use --ctx {trained} or less",
        )
    steps: Sequence[int] = (
        (options.n_ctx,)
        if options.n_ctx
        else sorted({min(step, trained) for step in _CONTEXT_STEPS}, reverse=True)
    )
    budget = profile.free_ram_bytes
    for n_ctx in steps:
        memory = rules.predict_memory(spec, weights, n_ctx)
        if sum(memory.values()) <= budget:
            return _plan(spec, profile, rules, options, recipe, weights, n_ctx, memory, learned)
    shortfall = sum(memory.values()) - budget
    raise DoesNotFitError(
        f"{recipe} with a context of {n_ctx} needs {format_bytes(sum(memory.values()))} on "
        f"{profile.name}, which leaves {format_bytes(budget)} free: {shortfall} bytes too much",
        shortfall_bytes=shortfall,
        next_step="a GGUF needs less (--format gguf), or take a smaller model",
    )


def _plan(
    spec: ModelSpec,
    profile: DeviceProfile,
    target: ConvertedFormat,
    options: PlanOptions,
    recipe: str,
    weights: FormatWeights,
    n_ctx: int,
    memory: dict[str, int],
    learned: Learned | None,
) -> Plan:
    n_threads = options.n_threads or default_threads(profile)
    if n_threads > profile.n_cores:
        raise UsageError(f"{n_threads} threads on {profile.name}, which has {profile.n_cores}")
    speed = estimate_speed(
        weights.tensors, spec.shape, profile, n_threads=n_threads, kv_type=KV_TYPE, repack=True,
        engine=target.engine_class,
    )  # fmt: skip
    found = (
        learned.find(profile, recipe, spec.arch, weights.artifact_bytes, _PREDICTED_SIZE)
        if learned is not None and options.n_threads is None
        else None
    )
    if found is not None and found.n_threads:
        n_threads = found.n_threads
    decode = (found and found.decode_tps) or speed.decode_tps
    prefill = (found and found.prefill_tps) or speed.prefill_tps
    row = target.row
    reasons = [f"{row.id}: {row.about}", f"recipe {recipe}: {target.describe_recipe(recipe)}"]
    if n_ctx < spec.shape.n_ctx_train and options.n_ctx is None:
        reasons.append(
            f"context {n_ctx}: the cache is allocated whole, in float32: "
            f"{format_bytes(memory['kv_cache'])}"
        )
    if found is not None:
        reasons.append(f"speed as measured here on {found.time[:10]}")
    return Plan(
        engine=row.engine,
        recipe=recipe,
        device=profile.id,
        n_ctx=n_ctx,
        kv_type=KV_TYPE,
        n_threads=n_threads,
        n_batch=max(prefill_lengths(n_ctx)),
        n_ubatch=max(prefill_lengths(n_ctx)),
        use_mmap=True,
        repack=True,
        artifact_bytes=weights.artifact_bytes,
        memory=memory,
        budget_bytes=profile.free_ram_bytes,
        decode_tps=decode,
        prefill_tps=prefill,
        error_bound=(found.bound if found else speed.decode_bound) if decode else None,
        basis="measured here" if found else profile.basis,
        reasons=tuple(reasons),
    )
