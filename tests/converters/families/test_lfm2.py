"""LFM2 beyond the oracle's bytes: shape of its two kinds of layers, sizes, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.families.lfm2 import Lfm2, Lfm2Moe
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import InputError, UnsupportedModelError
from tests.converters.families.cases_lfm2 import CASES, lfm2, lfm2_shapes
from tests.converters.families.checkpoints import write_case, write_checkpoint


def checkpoint(directory: Path, **sizes: Any) -> SafetensorsCheckpoint:
    config = lfm2(**sizes)
    write_checkpoint(directory, config, lfm2_shapes(config, 300))
    return SafetensorsCheckpoint(directory, config)


def mixture(directory: Path, **changes: Any) -> SafetensorsCheckpoint:
    case = next(case for case in CASES if case.name == "lfm2-moe")
    write_case(case, directory)
    return SafetensorsCheckpoint(directory, {**case.config, **changes})


def test_convolutions_keep_two_vectors_and_no_kv(tmp_path: Path) -> None:
    shape = Lfm2(checkpoint(tmp_path)).shape()
    assert [layer.n_head_kv for layer in shape.layers] == [0, 0, 1, 0, 1]
    assert [layer.state_values for layer in shape.layers] == [320, 320, 0, 320, 0]
    assert shape.n_head_kv == 1


def test_the_convolution_loses_its_middle_axis_and_stays_float32(tmp_path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in Lfm2(checkpoint(tmp_path)).tensors()}
    kernel = tensors["blk.0.shortconv.conv.weight"]
    assert (kernel.shape, kernel.keep) == ((160, 3), "F32")


def test_published_1_2b_size_is_adjusted(tmp_path: Path) -> None:
    # LiquidAI/LFM2-1.2B: block_ff_dim 12288, stored matrices of 8192 rows.
    sizes = {"block_auto_adjust_ff_dim": True, "block_multiple_of": 256, "block_ff_dim": 12288}
    plain = checkpoint(tmp_path)
    plain.config = {**plain.config, **sizes}
    assert Lfm2(plain).dims.n_ff == 8192


def test_only_chosen_experts_are_active(tmp_path: Path) -> None:
    shape = Lfm2Moe(mixture(tmp_path)).shape()
    experts = 3 * 6 * 3 * 72 * 160  # layers × experts × matrices × rows × columns
    assert shape.n_params - shape.n_params_active == experts * 4 // 6
    assert (shape.n_expert, shape.n_expert_used) == (6, 2)


def test_dense_layers_have_no_experts(tmp_path: Path) -> None:
    names = {tensor.name for tensor in Lfm2Moe(mixture(tmp_path)).tensors()}
    assert "blk.1.ffn_gate.weight" in names
    assert "blk.1.ffn_gate_exps.weight" not in names
    assert {"blk.2.ffn_gate_exps.weight", "blk.2.exp_probs_b.bias"} <= names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob is False"),
        ({"use_expert_bias": False}, "use_expert_bias is False"),
        ({"routed_scaling_factor": 2.5}, "routed_scaling_factor is 2.5"),
    ],
)
def test_routing_that_the_engine_cannot_do_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Lfm2Moe(mixture(tmp_path, **changes)).tensors()


def test_biased_convolutions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="conv_bias"):
        Lfm2(checkpoint(tmp_path, conv_bias=True)).tensors()


def test_unknown_kinds_of_layers_are_refused(tmp_path: Path) -> None:
    kinds = ["conv", "mamba", "full_attention", "conv", "full_attention"]
    config = lfm2(layer_types=kinds)
    write_checkpoint(tmp_path, config, lfm2_shapes(lfm2(), 300))
    with pytest.raises(UnsupportedModelError, match="layer_types has 'mamba'"):
        Lfm2(SafetensorsCheckpoint(tmp_path, config)).tensors()


def test_a_kind_that_the_tensors_do_not_show_is_refused(tmp_path: Path) -> None:
    kinds = ["conv", "full_attention", "full_attention", "conv", "full_attention"]
    source = checkpoint(tmp_path)
    with pytest.raises(InputError, match="layer_types calls layer 1 'full_attention', but the"):
        Lfm2(SafetensorsCheckpoint(tmp_path, {**source.config, "layer_types": kinds})).tensors()


def test_a_size_that_does_not_match_the_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="implies"):
        Lfm2(checkpoint(tmp_path, block_ff_dim=512)).tensors()
