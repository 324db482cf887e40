"""Gemma 3n beyond the oracle's bytes: padding, shared layers, what the engine has built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.families.gemma3n import Gemma3n
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import InputError, UnsupportedModelError
from tests.converters.families.cases_gemma4 import gemma3n, gemma3n_shapes
from tests.converters.families.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gemma3n")
    write_checkpoint(directory, gemma3n(), gemma3n_shapes(gemma3n()))
    return directory


def test_five_layers_use_the_cache_of_others(weights: Path) -> None:
    layers = Gemma3n(SafetensorsCheckpoint(weights, gemma3n())).shape().layers
    assert [layer.shares_kv for layer in layers] == [False] * 20 + [True] * 5
    assert [layer.window for layer in layers] == ([96] * 4 + [None]) * 5


def test_rows_of_other_modalities_are_zeros(weights: Path) -> None:
    tensors = Gemma3n(SafetensorsCheckpoint(weights, gemma3n())).tensors()
    table = next(t for t in tensors if t.name == "per_layer_token_embd.weight")
    assert table.shape == (384, 25 * 256)
    assert table.read(366, 368).all(axis=1).any()
    assert not table.read(368, 384).any()
    assert table.read(360, 372)[:8].any()
    assert not table.read(360, 372)[8:].any()


def test_keys_and_values_that_nothing_reads_become_zeros(tmp_path: Path) -> None:
    """transformers 5 saves none for shared layers; the engine wants them all the same."""
    shapes = {
        name: shape
        for name, shape in gemma3n_shapes(gemma3n()).items()
        if not any(f"layers.{i}.self_attn.{p}" in name for i in range(20, 25) for p in ("k_", "v_"))
    }
    write_checkpoint(tmp_path, gemma3n(), shapes, dtype="F16")
    tensors = Gemma3n(SafetensorsCheckpoint(tmp_path, gemma3n())).tensors()
    made = {t.name: t for t in tensors if t.origin == "zeros"}
    assert len(made) == 15
    assert made["blk.24.attn_k.weight"].shape == (48, 80)
    assert made["blk.24.attn_k_norm.weight"].keep == "F32"
    assert not made["blk.24.attn_v.weight"].read(0, 48).any()


def test_a_missing_projection_is_named(tmp_path: Path) -> None:
    shapes = dict(gemma3n_shapes(gemma3n()))
    del shapes["model.altup_projections.1.weight"]
    write_checkpoint(tmp_path, gemma3n(), shapes)
    with pytest.raises(InputError, match=r"model\.altup_projections\.1\.weight is missing"):
        Gemma3n(SafetensorsCheckpoint(tmp_path, gemma3n())).tensors()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"altup_num_inputs": 2}, "altup_num_inputs is 2"),
        ({"laurel_rank": 32}, "laurel_rank is 32"),
        ({"hidden_size_per_layer_input": 128}, "hidden_size_per_layer_input is 128"),
        ({"final_logit_softcapping": 20.0}, "final_logit_softcapping is 20"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is None"),
        ({"num_kv_shared_layers": 0}, "25 of 25 layers have keys and values"),
        ({"intermediate_size": [136] * 24 + [140]}, "intermediate_size differs"),
        ({"activation_sparsity_pattern": [0.5] * 25}, "activation_sparsity_pattern"),
        ({"num_hidden_layers": 10, "layer_types": None, "num_kv_shared_layers": 0,
          "intermediate_size": 136, "activation_sparsity_pattern": None}, "activation_sparsity"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)  # fmt: skip
def test_what_the_engine_has_built_in_otherwise_is_refused(
    sizes: dict[str, Any], message: str, weights: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Gemma3n(SafetensorsCheckpoint(weights, gemma3n(**sizes))).shape()


def test_a_table_larger_than_the_vocabulary_is_refused(weights: Path) -> None:
    source = SafetensorsCheckpoint(weights, gemma3n(vocab_size_per_layer_input=385))
    with pytest.raises(InputError, match="vocab_size_per_layer_input is 385"):
        Gemma3n(source).shape()
