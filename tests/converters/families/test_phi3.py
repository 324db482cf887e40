"""Phi-3 beyond the oracle's bytes: shape, rope divisors, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.phi3 import Phi3
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.edge.errors import InputError, UnsupportedModelError
from tests.converters.families.cases_phi3 import longrope, phi3, phi3_shapes
from tests.converters.families.checkpoints import write_checkpoint


def checkpoint(directory: Path, **sizes: Any) -> SafetensorsCheckpoint:
    config = phi3(**sizes)
    write_checkpoint(directory, config, phi3_shapes(config))
    return SafetensorsCheckpoint(directory, config)


def entries(source: SafetensorsCheckpoint) -> dict[str, Any]:
    return {entry.key: entry.value for entry in Phi3(source).metadata()}


def test_the_window_is_written_but_not_planned_with(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, sliding_window=2047)
    assert entries(source)["phi3.attention.sliding_window"] == 2047
    assert [layer.window for layer in Phi3(source).shape().layers] == [None, None]


def test_no_scaling_means_no_divisors(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    assert not any("rope_factors" in tensor.name for tensor in Phi3(source).tensors())
    assert "phi3.rope.scaling.attn_factor" not in entries(source)


def test_divisors_come_first_and_the_factor_grows_with_the_stretch(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, rope_scaling=longrope(32))
    long, short = Phi3(source).tensors()[:2]
    assert (long.name, short.name) == ("rope_factors_long.weight", "rope_factors_short.weight")
    assert (long.shape, long.keep) == ((32,), "F32")
    np.testing.assert_array_equal(
        long.read(0, 1)[0], np.array(longrope(32)["long_factor"], np.float32)
    )
    # 2048 over an original context of 512.
    expected = math.sqrt(1 + math.log(4) / math.log(512))
    assert entries(source)["phi3.rope.scaling.attn_factor"] == expected


@pytest.mark.parametrize(
    ("scaling", "error", "message"),
    [
        (longrope(31), InputError, "long_factor .*32 entries"),
        ({"type": "longrope", "long_factor": [1.0] * 32}, InputError, "no short_factor"),
        ({**longrope(32), "short_factor": ["1"] * 32}, InputError, "short_factor holds"),
        ({**longrope(32), "long_factor": [0.0] * 32}, InputError, "long_factor holds"),
        ({"type": "dynamic", "factor": 2.0}, UnsupportedModelError, "'dynamic' is unknown"),
    ],
)
def test_a_broken_scaling_is_refused(
    scaling: dict[str, Any], error: type[InputError], message: str, tmp_path: Path
) -> None:
    source = checkpoint(tmp_path, rope_scaling=scaling)
    with pytest.raises(error, match=message):
        Phi3(source).metadata()
    with pytest.raises(error, match=message):
        Phi3(source).tensors()


def test_unfused_projections_are_refused(tmp_path: Path) -> None:
    config = phi3()
    shapes = phi3_shapes(config)
    rows, columns = shapes.pop("model.layers.1.self_attn.qkv_proj.weight")
    shapes["model.layers.1.self_attn.q_proj.weight"] = (rows // 3, columns)
    write_checkpoint(tmp_path, config, shapes)
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.weight is unknown"):
        Phi3(SafetensorsCheckpoint(tmp_path, config)).tensors()
