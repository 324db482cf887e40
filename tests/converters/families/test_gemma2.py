"""Gemma 2 beyond the oracle's bytes: shape, additions to upstream's entries, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.gemma import Gemma2
from boardfit.converters.families.layout import SourceTensor, plus_one
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import InputError, UnsupportedModelError
from tests.converters.families.cases_gemma import gemma2, gemma_shapes
from tests.converters.families.checkpoints import write_checkpoint


def checkpoint(directory: Path, **sizes: Any) -> SafetensorsCheckpoint:
    config = gemma2(**sizes)
    write_checkpoint(directory, config, gemma_shapes(config))
    return SafetensorsCheckpoint(directory, config)


def entries(directory: Path, **sizes: Any) -> dict[str, Any]:
    return {entry.key: entry.value for entry in Gemma2(checkpoint(directory, **sizes)).metadata()}


def test_every_other_layer_keeps_a_window(tmp_path: Path) -> None:
    shape = Gemma2(checkpoint(tmp_path)).shape()
    assert [layer.window for layer in shape.layers] == [96, None, 96]
    assert {(layer.n_head_kv, layer.head_dim_k) for layer in shape.layers} == {(2, 40)}
    assert shape.tied_embeddings
    assert shape.n_params == shape.n_params_active  # the embedding is read as the head


def test_plus_one_is_rounded_as_the_source_type_rounds() -> None:
    half = np.array([0.1, 1e-4, -0.99999, 3.0], np.float16)
    rule = plus_one("attn_norm.weight", 4)
    [tensor] = rule.build("blk.0.attn_norm.weight", SourceTensor("n", "F16", (4,), half))
    assert tensor.source_type == "F16"
    assert tensor.read(0, 1).dtype == np.float16
    # 1e-4 is lost in float16, which has 11 bits of significand: upstream loses it too.
    assert tensor.read(0, 1)[0, 1] == 1.0
    wide = half.astype(np.float32)
    [tensor] = rule.build("blk.0.attn_norm.weight", SourceTensor("n", "F32", (4,), wide))
    assert tensor.source_type == "F32"
    assert tensor.read(0, 1)[0, 1] > 1.0


def test_nothing_is_added_where_the_engine_assumes_right(tmp_path: Path) -> None:
    written = entries(tmp_path)
    assert "gemma2.rope.freq_base" not in written
    assert "gemma2.attention.sliding_window_pattern" not in written


def test_what_the_engine_would_assume_wrongly_is_written(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    written = entries(tmp_path, layer_types=kinds, rope_theta=50000.0)
    assert written["gemma2.attention.sliding_window_pattern"] == [False, True, False]
    assert written["gemma2.rope.freq_base"] == 50000.0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
        ({"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is null"),
        ({"layer_types": ["conv", "conv", "conv"]}, "layer_types has 'conv'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
    ],
)
def test_what_the_engine_cannot_compute_is_refused(
    sizes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Gemma2(checkpoint(tmp_path, **sizes)).metadata()


def test_a_pattern_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="list of 3 entries"):
        Gemma2(checkpoint(tmp_path, layer_types=["full_attention"])).metadata()


def test_the_27b_model_has_a_scale_of_its_own(tmp_path: Path) -> None:
    # 46 layers tell the engine: 144 / 4 = 36 values of the hidden state per head, not head_dim.
    small = {"num_hidden_layers": 46, "intermediate_size": 8, "vocab_size": 16}
    assert entries(tmp_path / "a", query_pre_attn_scalar=36, **small)
    with pytest.raises(UnsupportedModelError, match="query_pre_attn_scalar is 40"):
        entries(tmp_path / "b", query_pre_attn_scalar=40, **small)
