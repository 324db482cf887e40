"""Qwen3.5 beyond the oracle's bytes: its two kinds of layers, the MTP head, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.qwen35 import DeltaNet, Qwen35
from boardfit.converters.families.registry import family_for
from boardfit.converters.families.settings import Config
from boardfit.edge.errors import InputError, UnsupportedModelError
from tests.converters.families.cases_qwen35 import qwen35, qwen35_shapes, qwen35moe
from tests.converters.families.checkpoints import Case
from tests.converters.families.test_hostile_config import Shapes


def opened(config: dict[str, Any], *, mtp: bool = False, **shapes: Any) -> Shapes:
    return Shapes(Case("case", config, qwen35_shapes(config, mtp=mtp, **shapes)), config)


def test_a_delta_net_keeps_a_state_and_no_kv() -> None:
    shape = Qwen35(opened(qwen35())).shape()
    # 3 positions of 2·2·16 + 6·16 channels, and 16 × 6·16.
    assert [layer.state_values for layer in shape.layers] == [2016, 2016, 0, 2016]
    assert [layer.n_head_kv for layer in shape.layers] == [0, 0, 2, 0]


def test_value_heads_change_places_where_key_heads_are_shared() -> None:
    net = DeltaNet(n_key=2, n_value=6, head_dim=1, kernel=4)
    assert net.value_order(1).tolist() == [0, 3, 1, 4, 2, 5]
    assert net.conv_order().tolist() == [0, 1, 2, 3, 4, 7, 5, 8, 6, 9]
    assert DeltaNet(3, 3, 4, 4).value_order(4).tolist() == list(range(12))


def test_the_mtp_head_is_left_out_unless_asked_for() -> None:
    config = qwen35()
    plain = opened(config)
    with_head = opened(config, mtp=True)
    names = [tensor.name for tensor in family_for(config)(plain).tensors()]
    assert [tensor.name for tensor in family_for(config)(with_head).tensors()] == names
    assert family_for(config)(with_head).metadata() == family_for(config)(plain).metadata()


def test_other_families_keep_no_mtp_head() -> None:
    with pytest.raises(UnsupportedModelError, match="--mtp keep is for"):
        family_for({"model_type": "nemotron_h"}, keep_mtp=True)


def test_a_kept_mtp_head_is_a_block_that_generation_skips() -> None:
    config = qwen35()
    source = opened(config, mtp=True)
    family = family_for(config, keep_mtp=True)(source)
    entries = {entry.key: entry.value for entry in family.metadata()}
    assert (entries["qwen35.block_count"], entries["qwen35.nextn_predict_layers"]) == (5, 1)
    assert entries["qwen35.attention.recurrent_layers"] == [True, True, False, True, False]
    kept, without = family.shape(), family_for(config)(source).shape()
    assert (kept.n_layer, len(kept.layers)) == (4, 4)
    assert kept.n_params_active == without.n_params_active
    assert kept.n_params > without.n_params


@pytest.mark.parametrize(
    ("config", "mtp", "kind", "message"),
    [
        (qwen35(), False, InputError, "no MTP head"),
        (
            qwen35(mtp_num_hidden_layers=2),
            True,
            UnsupportedModelError,
            "mtp_num_hidden_layers is 2",
        ),
    ],
)
def test_an_mtp_head_that_cannot_be_kept(
    config: dict[str, Any], mtp: bool, kind: type[InputError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        family_for(config, keep_mtp=True)(opened(config, mtp=mtp)).tensors()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"attn_output_gate": False}, UnsupportedModelError, "attn_output_gate is False"),
        ({"attention_bias": True}, UnsupportedModelError, "attention_bias is True"),
        ({"linear_value_head_dim": 8}, UnsupportedModelError, "linear_value_head_dim is 8"),
        ({"linear_num_value_heads": 5}, InputError, "linear_num_value_heads is 5"),
        ({"layer_types": ["mamba"] * 4}, UnsupportedModelError, "layer_types has 'mamba'"),
        (
            {"layer_types": ["full_attention"] * 4},
            InputError,
            "layer_types calls layer 0 ",
        ),
        ({"layer_types": ["full_attention"]}, InputError, "layer_types"),
        ({"linear_conv_kernel_dim": 5}, InputError, r"conv1d.weight has shape \[160, 1, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    changes: dict[str, Any], kind: type[InputError], message: str
) -> None:
    stored = opened(qwen35())
    stored.config = {**stored.config, **changes}
    with pytest.raises(kind, match=message):
        family = family_for(stored.config)(stored)
        family.tensors()
        family.metadata()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 5}, r"\[6, 96\], but config.json implies \[5, 96\]"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ({"moe_intermediate_size": 57}, "implies"),
    ],
)
def test_experts_that_disagree_with_the_tensors(changes: dict[str, Any], message: str) -> None:
    stored = opened(qwen35moe())
    stored.config = {**stored.config, **changes}
    with pytest.raises(InputError, match=message):
        family_for(stored.config)(stored).tensors()


def test_the_decay_is_the_negative_exponential_in_the_new_order() -> None:
    rule = DeltaNet.from_config(Config(qwen35())).rules(96)["linear_attn.A_log"]
    logarithms = np.linspace(-2, 2, 6, dtype=np.float32)
    source = Shapes(Case("case", {}, {"A_log": (6,)}), {}).tensor("A_log")
    (tensor,) = rule.build("blk.0.ssm_a", type(source)("A_log", "F32", (6,), logarithms))
    assert np.allclose(tensor.read(0, 1)[0], -np.exp(logarithms[[0, 3, 1, 4, 2, 5]]))
    assert tensor.keep == "F32"
