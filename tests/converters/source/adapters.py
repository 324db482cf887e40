"""LoRA and DoRA adapters as PEFT and MLX write them, and what a base becomes with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.converters.families.checkpoints import write_safetensors

LAYER = "model.layers.0."
QUERY, DOWN = f"{LAYER}self_attn.q_proj", f"{LAYER}mlp.down_proj"
Floats = Mapping[str, np.ndarray]


def merged(
    base: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float,
    magnitude: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """W + scale · left · right, number by number; with DoRA each row scaled to its length."""
    made = np.array(base, np.float64)
    for row in range(made.shape[0]):
        for column in range(made.shape[1]):
            pairs = zip(left[row], right[:, column], strict=True)
            product = sum(float(a) * float(b) for a, b in pairs)
            made[row, column] += scale * product
        if magnitude is not None:
            made[row] *= magnitude[row] / np.sqrt((made[row] ** 2).sum())
    return made


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def write_peft(folder: Path, tensors: Floats, **settings: Any) -> Path:
    """A PEFT adapter; `tensors` by what follows `base_model.model.`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "someone/base-1b", "r": 4,
              "lora_alpha": 8, **settings}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    stored = {f"base_model.model.{name}": ("F32", values) for name, values in tensors.items()}
    write_safetensors(folder / "adapter_model.safetensors", stored)
    return folder


def write_mlx(folder: Path, tensors: Floats, **settings: Any) -> Path:
    """An adapter of mlx-lm."""
    folder.mkdir(parents=True, exist_ok=True)
    strength = {"rank": 4, "scale": 20.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "model": "mlx-community/base-1b-4bit",
              "lora_parameters": strength, **settings}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    stored = {name: ("F32", values) for name, values in tensors.items()}
    write_safetensors(folder / "adapters.safetensors", stored)
    return folder


def pair(module: str, height: int, width: int, rank: int = 4) -> dict[str, np.ndarray]:
    """PEFT's two matrices of a linear layer."""
    return {
        f"{module}.lora_A.weight": random(rank, width, seed=1),
        f"{module}.lora_B.weight": random(height, rank, seed=2),
    }
