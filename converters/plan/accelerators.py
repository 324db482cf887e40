"""Estimate a board's GPU or NPU from published rows.

The kit plans and builds for the CPU; these figures say whether another road is worth the walk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from boardfit.converters.plan.cells import bound_text
from boardfit.converters.plan.planner import Candidate, Planner
from boardfit.device_profiles.cost.engine_classes import ACCELERATORS, EngineClass
from boardfit.device_profiles.cost.memory import StoredTensor
from boardfit.device_profiles.cost.quants import BITS
from boardfit.device_profiles.cost.speed import SpeedEstimate, estimate_speed
from boardfit.device_profiles.profile import Accelerator


@dataclass(frozen=True)
class AcceleratorSpeed:
    """`what` names the runtime and its weights; a figure without a basis in `speed` is None."""

    engine: EngineClass
    what: str
    speed: SpeedEstimate


def accelerator_speed(planner: Planner, chosen: Candidate) -> AcceleratorSpeed | None:
    """The same model on the board's accelerator; None without one that has an engine class."""
    accelerator = planner.profile.accelerator
    found = _engine(accelerator) if accelerator else None
    if found is None:
        return None
    name, what, bits = found
    tensors = tuple(_stored_as(tensor, bits) for tensor in chosen.weights.tensors)
    engine = ACCELERATORS[name]
    speed = estimate_speed(
        tensors,
        planner.shape,
        planner.profile,
        n_threads=chosen.n_threads,
        kv_type=chosen.kv_type,
        repack=False,
        engine=engine,
    )
    return AcceleratorSpeed(engine, what, speed)


def _engine(accelerator: Accelerator) -> tuple[str, str, str | None] | None:
    """(engine class, its name for people, the type it stores weights in, None for the recipe's)."""
    if accelerator.kind == "cuda":
        # Before compute capability 7 there are no tensor cores: a class of its own.
        old = float(accelerator.compute_capability or 7) < 7
        return f"llama.cpp-cuda{'-old' if old else ''}", "GPU (llama.cpp built with CUDA)", None
    if accelerator.kind == "npu" and "RKNPU" in accelerator.name:
        return "rkllm-npu", "NPU (RKLLM, w8a8)", "I8"
    if accelerator.kind == "npu" and "Hexagon" in accelerator.name:
        return "qnn-npu", "NPU (QNN, w4a16)", "I4"
    return None


def _stored_as(tensor: StoredTensor, ggml_type: str | None) -> StoredTensor:
    if ggml_type is None or tensor.ggml_type == "F32":
        return tensor
    n_bytes = round(tensor.n_elements * BITS[ggml_type] / 8)
    return replace(tensor, ggml_type=ggml_type, n_bytes=n_bytes)


def accelerator_lines(planner: Planner, chosen: Candidate) -> list[str]:
    """One line for people, none without an accelerator."""
    found = accelerator_speed(planner, chosen)
    if found is None or found.speed.decode_tps is None:
        return []
    speed = found.speed
    prefill = "no published row says how fast it prefills"
    if speed.prefill_tps is not None:
        rate = f"{speed.prefill_tps:.0f} tokens/s {bound_text(speed.prefill_bound)}"
        prefill = f"prefill {rate}"
    return [
        f"  not planned here, on its {found.what}: decode {speed.decode_tps:.1f} tokens/s"
        f" {bound_text(speed.decode_bound)}; {prefill}"
    ]


def accelerator_record(planner: Planner, chosen: Candidate) -> dict[str, Any] | None:
    """The same as a JSON-able object."""
    found = accelerator_speed(planner, chosen)
    if found is None:
        return None
    speed = found.speed
    return {
        "engine_class": found.engine.name,
        "decode_tps": speed.decode_tps,
        "decode_bound": speed.decode_bound,
        "prefill_tps": speed.prefill_tps,
        "prefill_bound": None if speed.prefill_tps is None else speed.prefill_bound,
    }
