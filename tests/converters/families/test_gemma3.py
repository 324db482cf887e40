"""Gemma 3 beyond the oracle's bytes: shape, defaults, what is left out, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.families.gemma import Gemma3
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import UnsupportedModelError
from tests.converters.families.cases_gemma import CASES, gemma3, gemma_shapes
from tests.converters.families.checkpoints import write_case, write_checkpoint


def checkpoint(directory: Path, **sizes: Any) -> SafetensorsCheckpoint:
    config = gemma3(**sizes)
    write_checkpoint(directory, config, gemma_shapes(config, head_norms=True))
    return SafetensorsCheckpoint(directory, config)


def multimodal(directory: Path) -> SafetensorsCheckpoint:
    case = next(case for case in CASES if case.name == "gemma3-multimodal")
    write_case(case, directory)
    return SafetensorsCheckpoint(directory, case.config)


def entries(source: SafetensorsCheckpoint) -> dict[str, Any]:
    return {entry.key: entry.value for entry in Gemma3(source).metadata()}


def test_five_layers_of_six_keep_a_window(tmp_path: Path) -> None:
    shape = Gemma3(checkpoint(tmp_path)).shape()
    assert [layer.window for layer in shape.layers] == [64] * 5 + [None] + [64] * 2


@pytest.mark.parametrize("period", [1, 2])
def test_the_pattern_as_a_number(period: int, tmp_path: Path) -> None:
    source = checkpoint(tmp_path, sliding_window_pattern=period, num_hidden_layers=4)
    windows = [layer.window for layer in Gemma3(source).shape().layers]
    written = entries(source)
    if period == 1:
        assert windows == [None] * 4
        assert "gemma3.attention.sliding_window" not in written
    else:
        assert windows == [64, None, 64, None]
        pattern = written["gemma3.attention.sliding_window_pattern"]
        assert pattern == [True, False, True, False]


def test_the_usual_pattern_is_not_written(tmp_path: Path) -> None:
    assert "gemma3.attention.sliding_window_pattern" not in entries(checkpoint(tmp_path))


def test_defaults_fill_a_sparse_configuration(tmp_path: Path) -> None:
    shape = Gemma3(multimodal(tmp_path)).shape()
    assert (shape.n_head, shape.n_head_kv, shape.layers[0].head_dim_k) == (8, 4, 256)
    assert shape.n_ctx_train == 131072


def test_the_vision_tower_is_left_out_and_said_so(tmp_path: Path) -> None:
    source = multimodal(tmp_path)
    names = [tensor.name for tensor in Gemma3(source).tensors()]
    assert not any("vision" in name or "mm_" in name for name in names)
    assert len(names) == 2 + 7 * 13
    assert sum(Gemma3(source).rename(name) is None for name in source.names()) == 4
    assert Gemma3(checkpoint(tmp_path / "text")).notes() == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"query_pre_attn_scalar": 168}, "query_pre_attn_scalar is 168"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is set"),
        ({"use_bidirectional_attention": True}, "embedding model"),
    ],
)
def test_what_the_engine_cannot_compute_is_refused(
    sizes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Gemma3(checkpoint(tmp_path, **sizes)).metadata()
