"""OLMo 2 and 3 beyond the oracle's bytes: windows, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.families.plain import Olmo2, Olmo3
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import UnsupportedModelError
from tests.converters.families.cases_olmo import olmo2, olmo3, olmo_shapes
from tests.converters.families.checkpoints import write_checkpoint


def checkpoint(directory: Path, config: dict[str, Any]) -> SafetensorsCheckpoint:
    write_checkpoint(directory, config, olmo_shapes(config))
    return SafetensorsCheckpoint(directory, config)


def test_olmo2_keeps_the_whole_context(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, olmo2())
    assert [layer.window for layer in Olmo2(source).shape().layers] == [None, None]
    assert not any("sliding" in entry.key for entry in Olmo2(source).metadata())


def test_olmo3_keeps_a_window_in_three_layers_of_four(tmp_path: Path) -> None:
    shape = Olmo3(checkpoint(tmp_path, olmo3())).shape()
    assert [layer.window for layer in shape.layers] == [64, 64, 64, None, 64, 64]
    assert shape.arch == "olmo2"


def test_tied_embeddings_are_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, olmo2(tie_word_embeddings=True))
    with pytest.raises(UnsupportedModelError, match="tie_word_embeddings"):
        Olmo2(source).tensors()
