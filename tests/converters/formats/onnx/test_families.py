"""Every family through the builder, our bridges and the engine: transformers' logits come out."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boardfit.converters.formats.base import FORMATS
from boardfit.converters.formats.converted import ConvertedFormat
from boardfit.converters.formats.onnx.convert import MODEL_FILE, convert_onnx
from boardfit.converters.formats.onnx.recipe import load_recipe
from boardfit.converters.source.resolve import open_model
from boardfit.device_profiles.catalog import find_profile
from boardfit.device_profiles.shape import LayerShape
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.errors import UnsupportedModelError
from boardfit.edge.types import GenerationConfig
from tests.converters.formats.onnx.family_checkpoints import FAMILIES, PROMPT
from tests.converters.formats.onnx.tiny_models import need_builder
from tests.edge.engines import tiny_hf
from tests.tool_pythons import find_tool_python

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.xdist_group("onnx-builder")]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_builder()
    home = tmp_path_factory.mktemp("families")
    script = Path(__file__).with_name("family_checkpoints.py")
    subprocess.run(
        [str(find_tool_python("onnx")), str(script), str(home)],
        check=True, capture_output=True, timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    for name in FAMILIES:
        tiny_hf.write_tokenizer(home / name)
    return home


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_are_those_of_transformers(family: str, checkpoints: Path, tmp_path: Path) -> None:
    convert_onnx(checkpoints / family, tmp_path / "out", load_recipe("f32"), n_ctx=256, threads=1)
    engine = open_engine("onnx", tmp_path / "out" / MODEL_FILE, EngineSettings(n_threads=1))
    try:
        got = engine.logits(PROMPT)  # type: ignore[attr-defined]
        expected = np.load(checkpoints / f"{family}.npy")[:, : got.shape[1]]
        assert np.abs(got - expected).max() < 0.01 * expected.std()
        # A prompt in one step and then token by token, and one cut back, are the same.
        config = GenerationConfig(max_tokens=6, ignore_eos=True)
        first = [e.token_id for e in engine.stream(PROMPT, config)]
        list(engine.stream([*PROMPT[:30], 5, 6], config))
        assert [e.token_id for e in engine.stream(PROMPT, config)] == first
        assert first[0] == int(expected[-1].argmax())
        assert engine.n_ctx == 256
    finally:
        engine.close()


def test_heads_that_the_runtime_does_not_take_are_refused_by_the_plan() -> None:
    spec, target = open_model("sample"), FORMATS["onnx"].load()
    assert isinstance(target, ConvertedFormat)
    narrow = replace(spec.shape, layers=(LayerShape(2, 24, 24),) * 4)
    with pytest.raises(UnsupportedModelError, match="24 values"):
        target.check_supported(replace(spec, shape=narrow), find_profile("raspberry-pi-5-8gb"))
