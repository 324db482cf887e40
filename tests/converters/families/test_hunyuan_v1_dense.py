"""Hunyuan beyond the oracle's bytes: the stretched context, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.families.plain import HunyuanDense
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import UnsupportedModelError
from tests.converters.families.cases_plain import hunyuan, hunyuan_shapes
from tests.converters.families.checkpoints import write_checkpoint


def checkpoint(directory: Path, **sizes: Any) -> SafetensorsCheckpoint:
    config = hunyuan(**sizes)
    write_checkpoint(directory, config, hunyuan_shapes(config))
    return SafetensorsCheckpoint(directory, config)


def test_the_context_is_the_stretched_one(tmp_path: Path) -> None:
    assert HunyuanDense(checkpoint(tmp_path / "a")).shape().n_ctx_train == 262144
    plain = checkpoint(tmp_path / "b", rope_scaling=None, max_position_embeddings=4096)
    assert HunyuanDense(plain).shape().n_ctx_train == 4096


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "alpha None"),
        ({"max_position_embeddings": 4096}, "max_position_embeddings 4096"),
        ({"rope_scaling": {"type": "xdrope", "alpha": 1000.0}}, "xdrope"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_experts": 16}, "num_experts"),
    ],
)
def test_another_form_is_refused(sizes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        HunyuanDense(checkpoint(tmp_path, **sizes)).metadata()
