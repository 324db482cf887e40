"""Estimate a board's GPU or NPU from published rows.

The kit plans and builds for the CPU; these figures say whether another road is worth the walk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from boardfit.device_profiles.cost.engine_classes import ACCELERATORS, EngineClass
from boardfit.device_profiles.cost.memory import StoredTensor
from boardfit.device_profiles.cost.model import RunSettings, StoredWeights
from boardfit.device_profiles.cost.quants import BITS
from boardfit.device_profiles.cost.speed import SpeedEstimate, estimate_speed
from boardfit.device_profiles.profile import Accelerator, DeviceProfile
from boardfit.device_profiles.shape import ModelShape


@dataclass(frozen=True)
class AcceleratorSpeed:
    """`what` names the runtime and its weights; a figure without a basis in `speed` is None."""

    engine: EngineClass
    what: str
    speed: SpeedEstimate


def estimate_accelerator(
    weights: StoredWeights, shape: ModelShape, profile: DeviceProfile, run: RunSettings
) -> AcceleratorSpeed | None:
    """Estimate a run on the board's accelerator; None without one that has an engine class."""
    found = _find_engine(profile.accelerator) if profile.accelerator else None
    if found is None:
        return None
    name, what, bits = found
    engine = ACCELERATORS[name]
    speed = estimate_speed(
        [_store_as(tensor, bits) for tensor in weights.tensors],
        shape,
        profile,
        n_threads=run.n_threads,
        kv_type=run.kv_type,
        repack=False,
        engine=engine,
    )
    return AcceleratorSpeed(engine, what, speed)


def _find_engine(accelerator: Accelerator) -> tuple[str, str, str | None] | None:
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


def _store_as(tensor: StoredTensor, ggml_type: str | None) -> StoredTensor:
    if ggml_type is None or tensor.ggml_type == "F32":
        return tensor
    n_bytes = round(tensor.n_elements * BITS[ggml_type] / 8)
    return replace(tensor, ggml_type=ggml_type, n_bytes=n_bytes)
