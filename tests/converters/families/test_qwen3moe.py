"""Qwen3-MoE beyond the oracle's bytes: lazy stacks, active parameters, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.qwen import Qwen3Moe
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError, UnsupportedModelError
from tests.converters.families.cases_moe import qwen3moe, qwen3moe_shapes
from tests.converters.families.checkpoints import write_checkpoint

N_EXPERT, N_FF, N_EMBD = 6, 56, 96


def checkpoint(directory: Path, *, fused: str | None = None, **sizes: Any) -> SafetensorsCheckpoint:
    config = qwen3moe(**sizes)
    shapes = qwen3moe_shapes(config, fused=fused)
    write_checkpoint(directory, config, shapes, dtype="F32", n_shards=3)
    return SafetensorsCheckpoint(directory, config)


def stack(source: SafetensorsCheckpoint, name: str) -> TargetTensor:
    return next(tensor for tensor in Qwen3Moe(source).tensors() if tensor.name == name)


def test_rows_within_an_expert_are_a_view_of_the_file(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    tensor = stack(source, "blk.1.ffn_up_exps.weight")
    expert = source.tensor("model.layers.1.mlp.experts.4.up_proj.weight").data
    rows = tensor.read(4 * N_FF + 3, 4 * N_FF + 9)
    assert np.shares_memory(rows, expert)
    np.testing.assert_array_equal(rows, expert[3:9])


@pytest.mark.parametrize("fused", [None, "", ".weight"])
def test_any_range_of_rows_equals_the_whole_stack(fused: str | None, tmp_path: Path) -> None:
    source = checkpoint(tmp_path, fused=fused)
    for name, height in (("up", N_FF), ("gate", N_FF), ("down", N_EMBD)):
        tensor = stack(source, f"blk.0.ffn_{name}_exps.weight")
        assert tensor.shape[:2] == (N_EXPERT, height)
        whole = tensor.read(0, tensor.n_rows)
        expected = np.concatenate([expert(source, fused, name, e) for e in range(N_EXPERT)])
        np.testing.assert_array_equal(whole, expected)
        for start, stop in ((0, 1), (height - 1, height + 1), (5, 3 * height + 2), (7, 7)):
            np.testing.assert_array_equal(tensor.read(start, stop), whole[start:stop])


def expert(source: SafetensorsCheckpoint, fused: str | None, name: str, index: int) -> np.ndarray:
    """One expert's matrix from the checkpoint, by the checkpoint's own names."""
    experts = "model.layers.0.mlp.experts"
    if fused is None:
        return source.tensor(f"{experts}.{index}.{name}_proj.weight").data
    if name == "down":
        return source.tensor(f"{experts}.down_proj{fused}").data[index]
    both = source.tensor(f"{experts}.gate_up_proj{fused}").data[index]
    return both[:N_FF] if name == "gate" else both[N_FF:]


def test_only_chosen_experts_are_active(tmp_path: Path) -> None:
    shape = Qwen3Moe(checkpoint(tmp_path)).shape()
    experts = 2 * N_EXPERT * 3 * N_FF * N_EMBD
    unread_embedding = (384 - 1) * N_EMBD
    assert shape.n_params - shape.n_params_active == experts * 4 // 6 + unread_embedding
    assert (shape.n_expert, shape.n_expert_used) == (6, 2)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    config = qwen3moe()
    shapes = qwen3moe_shapes(config)
    del shapes["model.layers.1.mlp.experts.5.down_proj.weight"]
    write_checkpoint(tmp_path, config, shapes)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.5\.down_proj\.weight is miss"):
        Qwen3Moe(SafetensorsCheckpoint(tmp_path, config)).tensors()


def test_an_expert_too_many_is_named(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    source.config = {**source.config, "num_experts": 5}
    with pytest.raises(InputError, match=r"mlp\.experts\.5\.\w+\.weight|mlp\.gate\.weight"):
        Qwen3Moe(source).tensors()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
    ],
)
def test_what_the_engine_cannot_compute_is_refused(
    sizes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Qwen3Moe(checkpoint(tmp_path, **sizes)).tensors()
