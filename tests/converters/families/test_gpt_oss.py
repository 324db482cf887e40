"""gpt-oss beyond the oracle's bytes: types that are kept, windows, plans, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from boardfit.converters.families.gpt_oss import GptOss
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import EdgeError, InputError, UnsupportedModelError
from tests.converters.families.cases_gpt_oss import gpt_oss, gpt_oss_shapes
from tests.converters.families.checkpoints import write_checkpoint

EXPERTS = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")


def checkpoint(
    directory: Path, *, packed: bool = True, drop: str = "", **sizes: Any
) -> SafetensorsCheckpoint:
    config = gpt_oss(**sizes)
    shapes = gpt_oss_shapes(config, packed=packed)
    if drop:
        del shapes[drop]
    write_checkpoint(directory, config, shapes)
    return SafetensorsCheckpoint(directory, config)


def test_blocks_hold_the_values_of_the_checkpoint(tmp_path: Path) -> None:
    """Gate and up alternate; ggml's blocks decode to the checkpoint's own values."""
    source = checkpoint(tmp_path)
    made = {tensor.name: tensor for tensor in GptOss(source).tensors()}
    both = np.asarray(source.tensor("model.layers.1.mlp.experts.gate_up_proj").data)
    for first, name in enumerate(EXPERTS[:2]):
        tensor = made[f"blk.1.{name}"]
        assert (tensor.source_type, tensor.keep, tensor.shape) == ("MXFP4", "MXFP4", (5, 64, 96))
        stored = tensor.read(0, tensor.n_rows)
        values = dequantize(stored, GGMLQuantizationType.MXFP4)
        np.testing.assert_array_equal(values.reshape(5, 64, 96), both[:, first::2])
        # A slab across the seam of two experts.
        np.testing.assert_array_equal(tensor.read(60, 70), stored[60:70])


def test_every_other_layer_has_the_window(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    shape = GptOss(source).shape()
    assert [layer.window for layer in shape.layers] == [64, None, 64]
    assert (shape.n_expert, shape.n_expert_used) == (5, 2)
    experts = 3 * 5 * (3 * 64 * 96 + 2 * 64 + 96)
    # Two of five experts, and one row of the embedding.
    assert shape.n_params - shape.n_params_active == experts * 3 // 5 + 383 * 96
    assert not any("pattern" in entry.key for entry in GptOss(source).metadata())


def test_kept_experts_are_noted(tmp_path: Path) -> None:
    kept = GptOss(checkpoint(tmp_path / "packed")).notes()
    assert [note for note in kept if "stay in MXFP4" in note]
    assert not GptOss(checkpoint(tmp_path / "floats", packed=False)).notes()


def test_another_pattern_is_written(tmp_path: Path) -> None:
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    source = checkpoint(tmp_path, packed=False, layer_types=kinds)
    entries = {entry.key: entry.value for entry in GptOss(source).metadata()}
    assert entries["gpt-oss.attention.sliding_window_pattern"] == [False, False, True]


@pytest.mark.parametrize(
    ("faulty", "error", "words"),
    [
        ({"tie_word_embeddings": True}, UnsupportedModelError, "tie_word_embeddings"),
        ({"attention_bias": False}, UnsupportedModelError, "attention_bias"),
        ({"swiglu_limit": 5.0}, UnsupportedModelError, "swiglu_limit"),
        ({"layer_types": ["full_attention"]}, InputError, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 3}, UnsupportedModelError, "layer_types"),
        ({"num_local_experts": 6}, InputError, r"expert|router"),
        ({"intermediate_size": 32}, InputError, "down_proj|gate_up_proj"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    faulty: dict[str, Any], error: type[EdgeError], words: str, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path)
    source.config = {**source.config, **faulty}
    with pytest.raises(error, match=words):
        GptOss(source).shape()


@pytest.mark.parametrize("part", ["blocks", "scales"])
def test_half_of_an_expert_is_refused(part: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="down_proj"):
        GptOss(checkpoint(tmp_path, drop=f"model.layers.2.mlp.experts.down_proj_{part}")).tensors()
