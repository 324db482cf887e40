"""Granite beyond the oracle's bytes: multipliers, lazy halves of experts, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.granite import Granite, GraniteMoe
from boardfit.converters.families.registry import family_for
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import UnsupportedModelError
from tests.converters.families.cases_granite import (
    MULTIPLIERS,
    granite,
    granite4,
    granite4_shapes,
    moe,
    moe_shapes,
)
from tests.converters.families.checkpoints import decoder_shapes, write_checkpoint


def test_multipliers_go_by_the_engines_names(tmp_path: Path) -> None:
    config = granite()
    write_checkpoint(tmp_path, config, decoder_shapes(config))
    source = SafetensorsCheckpoint(tmp_path, config)
    written = {entry.key: entry.value for entry in Granite(source).metadata()}
    names = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
    assert [written[f"granite.{name}"] for name in names] == list(MULTIPLIERS.values())
    assert "granite.attention.key_length" not in written


def test_a_head_size_that_the_engine_does_not_know_is_refused(tmp_path: Path) -> None:
    config = granite(head_dim=64)
    write_checkpoint(tmp_path, config, decoder_shapes(config))
    with pytest.raises(UnsupportedModelError, match="head_dim is 64"):
        Granite(SafetensorsCheckpoint(tmp_path, config)).tensors()


def test_gate_and_up_are_taken_apart_per_expert(tmp_path: Path) -> None:
    config = moe("Shared", shared_intermediate_size=56)
    write_checkpoint(tmp_path, config, moe_shapes(config), dtype="F32")
    source = SafetensorsCheckpoint(tmp_path, config)
    tensors = {tensor.name: tensor for tensor in GraniteMoe(source).tensors()}
    both = source.tensor("model.layers.1.block_sparse_moe.input_linear.weight").data
    gate, up = (tensors[f"blk.1.ffn_{name}_exps.weight"] for name in ("gate", "up"))
    np.testing.assert_array_equal(gate.read(0, gate.n_rows), both[:, :72].reshape(-1, 160))
    np.testing.assert_array_equal(up.read(70, 75), both[:, 72:].reshape(-1, 160)[70:75])
    assert np.shares_memory(up.read(72, 144), both)
    shared = source.tensor("model.layers.0.shared_mlp.input_linear.weight").data
    up = tensors["blk.0.ffn_up_shexp.weight"]
    assert up.shape == (56, 160)
    np.testing.assert_array_equal(up.read(0, 56), shared[56:])


def test_only_chosen_experts_are_active(tmp_path: Path) -> None:
    config = moe("", tie_word_embeddings=True)
    write_checkpoint(tmp_path, config, moe_shapes(config))
    shape = GraniteMoe(SafetensorsCheckpoint(tmp_path, config)).shape()
    experts = 2 * 6 * 3 * 72 * 160
    assert shape.n_params - shape.n_params_active == experts * 4 // 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["attention", "mamba"]}, "nowhere"),
        ({"position_embedding_type": "nope"}, "in every layer"),
    ],
)
def test_granite_4_with_other_rotations_than_the_engines_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = granite4(**changes)
    write_checkpoint(tmp_path, config, granite4_shapes(config))
    with pytest.raises(UnsupportedModelError, match=message):
        family_for(config)(SafetensorsCheckpoint(tmp_path, config)).tensors()
