"""A plan for a format other than GGUF: what fits the board, and how fast it is likely to be.

Memory, as the engines themselves reckon (`edge/engines/litert/`, `onnx/check.py`): the file as it
is mapped, its matrices once more in the layout of the CPU's kernels, a KV cache in float32, the
activations of one prefill step, interpreter and libraries. Speed: the engine's class, fitted on
published rows (`boardfit.device_profiles.cost`); ONNX Runtime's is from one side-by-side run.
"""

from __future__ import annotations

from collections.abc import Sequence

from boardfit.converters.formats.litert.families import check_family
from boardfit.converters.formats.onnx.convert import FAMILIES as ONNX_FAMILIES
from boardfit.converters.formats.table import FORMATS, GGUF, Format
from boardfit.converters.formats.weigh import ENGINE_BYTES, FormatWeights, weigh
from boardfit.converters.plan.learned import Learned
from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.engine_classes import CPU_ENGINES, EngineClass
from boardfit.device_profiles.cost.memory import kv_bytes, margin_bytes
from boardfit.device_profiles.cost.speed import default_threads, estimate_speed
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.errors import (
    DoesNotFitError,
    EngineError,
    InputError,
    UnsupportedModelError,
    UsageError,
)
from boardfit.edge.types import Plan
from boardfit.edge.units import format_bytes, printable

KV_TYPE = "f32"
#: Lengths of prompt that get a graph of their own; the engine cuts a prompt into such steps.
PREFILL_LENGTHS = (16, 128, 512)
# A predicted size knows neither graph nor tokenizer files exactly.
_PREDICTED_SIZE = 0.2
_CONTEXT_STEPS = (4096, 2048, 1024, 512)

# Source: one shape (Qwen2-0.5B), one machine (x86-64, AVX-512 VNNI, 2 threads), tokens/s against
# llama.cpp Q4_0 of the same run: prefill 105 / 275, decode 38 / 58.6. There is no published row.
ONNX_CLASS = EngineClass(
    "onnxruntime-genai", 0.6, kernel_scale=0.4, isa_limit=frozenset(
        {"neon", "fp16", "dotprod", "i8mm", "avx2", "avx512", "avx512_vnni"}
    ),
)  # fmt: skip


def engine_class(target: Format) -> EngineClass:
    return ONNX_CLASS if target.id == "onnx" else CPU_ENGINES[target.engine_class]


def check_supported(spec: ModelSpec, profile: DeviceProfile, target: Format) -> None:
    """Raise for a model that the format cannot hold (UnsupportedModelError, which offers GGUF), or
    a board that its engine is known not to run on (EngineError).
    """
    if target.id == GGUF:
        return
    if spec.tokenizer_dir is None:
        raise UnsupportedModelError(
            f"{target.id} is made from a checkpoint; {printable(spec.name)} is a GGUF file",
            next_step="give the Hugging Face directory, or use --format gguf",
        )
    if target.id == "onnx":
        if spec.family not in ONNX_FAMILIES:
            raise UnsupportedModelError(
                f"ONNX cannot be made of {printable(spec.family)!r} models; it can of: "
                f"{', '.join(ONNX_FAMILIES)}",
                next_step="build a GGUF: --format gguf",
            )
    else:
        check_family(spec.family)
    for name in target.profile_engines:
        support = profile.engine_support(name)
        if support is not None and not support.runs:
            raise EngineError(
                f"{name} does not run on {profile.name}: {support.note} [{support.source}]",
                next_step="use --format gguf",
            )
    if target.id == "litertlm" and "neon" in profile.isa and "lse" not in profile.isa:
        raise EngineError(
            f"LiteRT-LM's library needs LSE atomics (Armv8.1), which {profile.name} does not have",
            next_step="use --format tflite or --format gguf",
        )


def plan_format(
    spec: ModelSpec,
    profile: DeviceProfile,
    target: Format,
    options: PlanOptions,
    *,
    learned: Learned | None = None,
) -> Plan:
    """The plan for one format on one board.

    Raises what `check_supported` does, UsageError for an unknown recipe or an option the format
    does not have, DoesNotFitError with the shortfall when no context fits.
    """
    check_supported(spec, profile, target)
    if options.kv_type not in (None, KV_TYPE):
        raise UsageError(
            f"{target.id}: the KV cache is {KV_TYPE}; --kv-type {options.kv_type} is GGUF's alone"
        )
    recipe = options.recipe or target.recipe
    weights = weigh(spec, target, recipe)
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
        memory = memory_of(spec, target, weights, n_ctx)
        if sum(memory.values()) <= budget:
            return _plan(spec, profile, target, options, recipe, weights, n_ctx, memory, learned)
    shortfall = sum(memory.values()) - budget
    raise DoesNotFitError(
        f"{recipe} with a context of {n_ctx} needs {format_bytes(sum(memory.values()))} on "
        f"{profile.name}, which leaves {format_bytes(budget)} free: {shortfall} bytes too much",
        shortfall_bytes=shortfall,
        next_step="a GGUF needs less (--format gguf), or take a smaller model",
    )


def prefill_lengths(n_ctx: int) -> list[int]:
    return [n for n in PREFILL_LENGTHS if n < n_ctx] or [n_ctx]


def memory_of(
    spec: ModelSpec, target: Format, weights: FormatWeights, n_ctx: int
) -> dict[str, int]:
    """Bytes by kind, as in `Plan.memory`."""
    shape = spec.shape
    step = max(prefill_lengths(n_ctx))
    n_ff = max((t.n_rows for t in weights.tensors if ".ffn_up." in t.name), default=shape.n_embd)
    memory = {
        "weights_mapped": weights.artifact_bytes,
        "weights_repacked": sum(t.n_bytes for t in weights.tensors),
        "kv_cache": kv_bytes(shape, n_ctx, KV_TYPE),
        # Gate, up and their product, the residual stream, queries to values: float32, one step.
        "compute_buffers": 4 * step * (3 * n_ff + 6 * shape.n_embd) + 4 * step * n_ctx,
        "output_buffer": 4 * shape.n_vocab * (step if target.id == "onnx" else 2),
        "engine_and_interpreter": ENGINE_BYTES[target.engine],
    }
    return {**memory, "margin": margin_bytes(sum(memory.values()))}


def _plan(
    spec: ModelSpec,
    profile: DeviceProfile,
    target: Format,
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
        engine=engine_class(target),
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
    reasons = [f"{target.id}: {target.about}", f"recipe {recipe}: {_about(target, recipe)}"]
    if n_ctx < spec.shape.n_ctx_train and options.n_ctx is None:
        reasons.append(
            f"context {n_ctx}: the cache is allocated whole, in float32: "
            f"{format_bytes(memory['kv_cache'])}"
        )
    if found is not None:
        reasons.append(f"speed as measured here on {found.time[:10]}")
    return Plan(
        engine=target.engine,
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


def _about(target: Format, recipe: str) -> str:
    from boardfit.converters.formats.litert.recipe import load_recipe
    from boardfit.converters.formats.onnx.recipe import load_onnx_recipe

    return load_onnx_recipe(recipe).about if target.id == "onnx" else load_recipe(recipe).name


def format_of_engine(engine: str) -> Format:
    """The format that an engine runs."""
    return next(f for f in FORMATS.values() if f.engine == engine)
