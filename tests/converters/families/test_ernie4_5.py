"""ERNIE 4.5 beyond the oracle's bytes: what the engine leaves out is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.families.plain import Ernie45
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import UnsupportedModelError
from tests.converters.families.cases_plain import ernie4_5
from tests.converters.families.checkpoints import decoder_shapes, write_checkpoint


def test_biases_are_refused(tmp_path: Path) -> None:
    config = ernie4_5(use_bias=True)
    write_checkpoint(tmp_path, config, decoder_shapes(config, attention_bias="qkvo"))
    with pytest.raises(UnsupportedModelError, match="use_bias"):
        Ernie45(SafetensorsCheckpoint(tmp_path, config)).tensors()
