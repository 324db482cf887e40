"""EXAONE 4 beyond the oracle's bytes: windows, and what the engine would compute otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.families.plain import Exaone4
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import UnsupportedModelError
from tests.converters.families.cases_plain import exaone4, exaone4_shapes
from tests.converters.families.checkpoints import write_checkpoint

DEEP = {
    "num_hidden_layers": 64,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "vocab_size": 32,
    "sliding_window": 128,
}


def checkpoint(directory: Path, **sizes: Any) -> SafetensorsCheckpoint:
    config = exaone4(**sizes)
    write_checkpoint(directory, config, exaone4_shapes(config))
    return SafetensorsCheckpoint(directory, config)


@pytest.mark.parametrize("pattern", ["LLLG", 4])
def test_the_pattern_may_be_letters_or_a_period(pattern: str | int, tmp_path: Path) -> None:
    source = checkpoint(tmp_path, **DEEP, sliding_window_pattern=pattern, layer_types=None)
    windows = [layer.window for layer in Exaone4(source).shape().layers]
    assert windows == [128, 128, 128, None] * 16


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"sliding_window": 64}, "64 with 2 layers"),
        ({**DEEP, "sliding_window": None}, "None with 64 layers"),
        ({**DEEP, "sliding_window_pattern": "LLX", "layer_types": None}, "LLX"),
        ({"head_dim": 64}, "head_dim 64 times 10 heads"),
    ],
)
def test_what_the_engine_would_compute_otherwise_is_refused(
    sizes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        Exaone4(checkpoint(tmp_path, **sizes)).shape()
