"""Plan a format that a converter makes: what fits the board, and how fast it is likely to be.

Memory is the format's (`boardfit.converters.formats.converted`). Speed is that of the engine's
class, fitted on published rows (`boardfit.device_profiles.cost`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Fit:
    """A recipe and a context that go into the board's memory."""

    recipe: str
    weights: FormatWeights
    n_ctx: int
    memory: dict[str, int]


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
    fit = _find_fit(spec, profile, rules, options)
    n_threads = options.n_threads or default_threads(profile)
    if n_threads > profile.n_cores:
        raise UsageError(f"{n_threads} threads on {profile.name}, which has {profile.n_cores}")
    speed = estimate_speed(
        fit.weights.tensors, spec.shape, profile, n_threads=n_threads, kv_type=KV_TYPE,
        repack=True, engine=rules.engine_class,
    )  # fmt: skip
    artifact_bytes, n_batch = fit.weights.artifact_bytes, max(prefill_lengths(fit.n_ctx))
    measured = (
        learned.find(profile, fit.recipe, spec.arch, artifact_bytes, _PREDICTED_SIZE)
        if learned is not None and options.n_threads is None
        else None
    )
    decode = (measured and measured.decode_tps) or speed.decode_tps
    prefill = (measured and measured.prefill_tps) or speed.prefill_tps
    return Plan(
        engine=target.engine,
        recipe=fit.recipe,
        device=profile.id,
        n_ctx=fit.n_ctx,
        kv_type=KV_TYPE,
        n_threads=(measured and measured.n_threads) or n_threads,
        n_batch=n_batch,
        n_ubatch=n_batch,
        use_mmap=True,
        repack=True,
        artifact_bytes=artifact_bytes,
        memory=fit.memory,
        budget_bytes=profile.free_ram_bytes,
        decode_tps=decode,
        prefill_tps=prefill,
        error_bound=(measured.bound if measured else speed.decode_bound) if decode else None,
        basis="measured here" if measured else profile.basis,
        reasons=tuple(
            _list_reasons(spec, rules, options, fit, measured.time if measured else None)
        ),
    )


def _find_fit(
    spec: ModelSpec, profile: DeviceProfile, rules: ConvertedFormat, options: PlanOptions
) -> _Fit:
    """The longest context that fits. Raises DoesNotFitError where none does."""
    recipe = options.recipe or rules.row.recipe
    weights = rules.weigh(spec, recipe)
    for n_ctx in _list_contexts(spec, options):
        memory = rules.predict_memory(spec, weights, n_ctx)
        if sum(memory.values()) <= profile.free_ram_bytes:
            return _Fit(recipe, weights, n_ctx, memory)
    needed, budget = sum(memory.values()), profile.free_ram_bytes
    raise DoesNotFitError(
        f"{recipe} with a context of {n_ctx} needs {format_bytes(needed)} on {profile.name}, "
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


def _list_reasons(
    spec: ModelSpec,
    rules: ConvertedFormat,
    options: PlanOptions,
    fit: _Fit,
    measured_at: str | None,
) -> Iterator[str]:
    yield f"{rules.row.id}: {rules.row.about}"
    yield f"recipe {fit.recipe}: {rules.describe_recipe(fit.recipe)}"
    if fit.n_ctx < spec.shape.n_ctx_train and options.n_ctx is None:
        cache = format_bytes(fit.memory["kv_cache"])
        yield f"context {fit.n_ctx}: the cache is allocated whole, in float32: {cache}"
    if measured_at is not None:
        yield f"speed as measured here on {measured_at[:10]}"
