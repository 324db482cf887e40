"""Gemma 4 beyond the oracle's bytes: shape, sizes that differ between layers, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.gemma4 import Gemma4
from boardfit.converters.families.registry import family_for
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.device_profiles.cost.memory import kv_bytes
from boardfit.edge.errors import InputError, UnsupportedModelError
from tests.converters.families.cases_gemma4 import (
    CASES,
    EXPERTS,
    LARGE,
    gemma4,
    gemma4_shapes,
)
from tests.converters.families.checkpoints import write_case, write_checkpoint

WINDOW, FULL = "sliding_attention", "full_attention"
ROPE = gemma4()["rope_parameters"]


def checkpoint(directory: Path, **sizes: Any) -> SafetensorsCheckpoint:
    """The weights of the usual sizes, with a configuration that may disagree."""
    write_checkpoint(directory, gemma4(), gemma4_shapes(gemma4()))
    return SafetensorsCheckpoint(directory, gemma4(**sizes))


def large(directory: Path, **sizes: Any) -> SafetensorsCheckpoint:
    config = gemma4(**{**LARGE, **EXPERTS, **sizes})
    write_checkpoint(directory, config, gemma4_shapes(config))
    return SafetensorsCheckpoint(directory, config)


def entries(source: SafetensorsCheckpoint) -> dict[str, Any]:
    return {entry.key: entry.value for entry in Gemma4(source).metadata()}


def test_two_head_sizes_and_layers_without_a_cache(tmp_path: Path) -> None:
    shape = Gemma4(checkpoint(tmp_path)).shape()
    assert [layer.head_dim_k for layer in shape.layers] == [24, 24, 56] * 3
    assert [layer.window for layer in shape.layers] == [96, 96, None] * 3
    assert [layer.shares_kv for layer in shape.layers] == [False] * 6 + [True] * 3
    assert shape.n_ff == 400
    # Six of nine layers: a key and a value of two bytes for each cell (windows are padded to 256).
    assert kv_bytes(shape, 512, "f16") == 2 * 2 * (4 * 512 * 24 + 2 * 512 * 56)


def test_a_token_reads_one_row_of_the_table(tmp_path: Path) -> None:
    shape = Gemma4(checkpoint(tmp_path)).shape()
    assert shape.n_params - shape.n_params_active == (384 - 1) * 9 * 40


def test_keys_for_values_in_full_attention_only(tmp_path: Path) -> None:
    source = large(tmp_path)
    names = {tensor.name for tensor in Gemma4(source).tensors()}
    assert [f"blk.{i}.attn_v.weight" in names for i in range(6)] == [True, True, False] * 2
    assert [layer.n_head_kv for layer in Gemma4(source).shape().layers] == [2, 2, 1] * 2
    assert entries(source)["gemma4.attention.head_count_kv"] == [2, 2, 1] * 2


def test_heads_for_full_attention_count_with_keys_for_values_only(tmp_path: Path) -> None:
    """As transformers does; upstream's converter writes heads that the weights do not have."""
    source = checkpoint(tmp_path, num_global_key_value_heads=4)
    assert entries(source)["gemma4.attention.head_count_kv"] == [1] * 9
    assert len(Gemma4(source).tensors()) > 0


@pytest.mark.parametrize("names_kinds", [True, False])
def test_sizes_in_an_object_for_each_layer(names_kinds: bool, tmp_path: Path) -> None:
    """As transformers saves it from 5.15 on."""
    source = large(tmp_path)
    newer = {
        key: value
        for key, value in source.config.items()
        if key not in ("global_head_dim", "num_global_key_value_heads")
        and (names_kinds or key != "layer_types")
    }
    row = {"head_dim": 56, "num_key_value_heads": 1}
    newer["per_layer_config"] = {"02": row, "05": row}
    changed = SafetensorsCheckpoint(tmp_path, newer)
    assert entries(changed) == entries(source)
    assert Gemma4(changed).shape() == Gemma4(source).shape()
    newer["per_layer_config"] = {"02": row, "05": {"head_dim": 64}}
    with pytest.raises(UnsupportedModelError, match=r"per_layer_config has head_dim \[56, 64\]"):
        Gemma4(changed).shape()


def test_unrotated_values_have_large_divisors(tmp_path: Path) -> None:
    factors = Gemma4(checkpoint(tmp_path)).tensors()[0]
    values = factors.read(0, 1)[0]
    assert factors.name == "rope_freqs.weight"
    assert np.array_equal(values, np.float32([1.0] * 7 + [1e30] * 21))


def test_no_cap_is_written_as_zero(tmp_path: Path) -> None:
    """The engine takes 30 for an entry that is not there."""
    written = entries(checkpoint(tmp_path, final_logit_softcapping=None))
    assert written["gemma4.final_logit_softcapping"] == 0.0


def test_the_last_layer_sees_everything(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, layer_types=[WINDOW, WINDOW, FULL] * 2 + [WINDOW] * 3)
    assert Gemma4(source).shape().layers[-1].window is None


def test_towers_are_left_out(tmp_path: Path) -> None:
    for name in ("gemma4-multimodal", "gemma4-unified"):
        case = next(case for case in CASES if case.name == name)
        write_case(case, tmp_path / name)
        source = SafetensorsCheckpoint(tmp_path / name, case.config)
        family = family_for(case.config)(source)
        assert sum(family.rename(stored) is None for stored in source.names()) == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"use_bidirectional_attention": "all"}, "embedding model"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"vocab_size_per_layer_input": 300}, "vocab_size_per_layer_input is 300"),
        ({"rope_parameters": {**ROPE, FULL: {"rope_type": "yarn"}}}, "rope_type 'yarn'"),
        ({"rope_parameters": {**ROPE, FULL: {**ROPE[FULL], "factor": 8.0}}}, "factor 8.0"),
        ({"rope_parameters": {WINDOW: ROPE[WINDOW]}}, "rope_type None"),
        ({"num_kv_shared_layers": 8}, "num_kv_shared_layers is 8 of 9"),
        ({"num_kv_shared_layers": 4}, "takes keys and values of layer"),
        ({"layer_types": [FULL] * 9}, "one with a window"),
        ({"layer_types": [WINDOW] * 8 + ["linear_attention"]}, "linear_attention"),
    ],
)
def test_what_the_engine_cannot_compute_is_refused(
    sizes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Gemma4(checkpoint(tmp_path, **sizes)).shape()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layer_types": [WINDOW] * 8}, "a list of 9 entries"),
        ({"layer_types": [WINDOW, FULL] * 4 + [FULL]}, "has shape"),
        ({"num_kv_shared_layers": -1}, "num_kv_shared_layers is -1"),
        ({"use_double_wide_mlp": False}, "implies"),
        ({"hidden_size_per_layer_input": 0}, "is unknown to family gemma4"),
        ({"num_hidden_layers": 100000}, "num_hidden_layers is 100000"),
        ({"enable_moe_block": True}, "is missing"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(
    sizes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = {"num_kv_shared_layers": 3, **sizes}
    if config.get("layer_types") == [WINDOW, FULL] * 4 + [FULL]:
        config["num_kv_shared_layers"] = 0
    with pytest.raises(InputError, match=message):
        Gemma4(checkpoint(tmp_path, **config)).shape()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"top_k_experts": 9}, "top_k_experts is 9, but num_experts is 6"),
        ({"num_global_key_value_heads": 3}, "cannot share"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"num_experts": None}, "num_experts is missing"),
        ({"top_k_experts": None}, "top_k_experts is missing"),
    ],
)
def test_experts_that_do_not_fit_are_refused(
    sizes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = large(tmp_path)
    changed = SafetensorsCheckpoint(tmp_path, {**source.config, **sizes})
    with pytest.raises(InputError, match=message):
        Gemma4(changed).metadata()
        Gemma4(changed).shape()
