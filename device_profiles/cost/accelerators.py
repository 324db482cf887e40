"""Estimate a board's GPU or NPU from published rows.

The kit plans and builds for the CPU; these figures say whether another road is worth the walk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from boardfit.device_profiles.cost.engine_classes import CUDA, OLD_CUDA, QNN, RKLLM, EngineClass
from boardfit.device_profiles.cost.model import RunSettings, StoredWeights
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
    engine, what, bits = found
    speed = estimate_speed(
        [
            tensor
            if bits is None or tensor.ggml_type == "F32"
            else replace(tensor, n_bytes=round(tensor.n_elements * bits / 8))
            for tensor in weights.tensors
        ],
        shape,
        profile,
        n_threads=run.n_threads,
        kv_type=run.kv_type,
        repack=False,
        engine=engine,
    )
    return AcceleratorSpeed(engine, what, speed)


def _find_engine(accelerator: Accelerator) -> tuple[EngineClass, str, float | None] | None:
    """(engine class, its name for people, the bits of its weights, None for the recipe's)."""
    if accelerator.kind == "cuda":
        old = float(accelerator.compute_capability or 7) < 7
        return OLD_CUDA if old else CUDA, "GPU (llama.cpp built with CUDA)", None
    # With their scales: 8 bits per channel, 4 bits in groups with 16-bit scales.
    if accelerator.kind == "npu" and "RKNPU" in accelerator.name:
        return RKLLM, "NPU (RKLLM, w8a8)", 8.05
    if accelerator.kind == "npu" and "Hexagon" in accelerator.name:
        return QNN, "NPU (QNN, w4a16)", 4.25
    return None
