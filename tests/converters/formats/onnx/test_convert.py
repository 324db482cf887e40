"""The sample model to 4-bit ONNX: small, its own stops and context, and it still does its task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boardfit.converters.formats.base import FORMATS
from boardfit.converters.formats.onnx import convert as target
from boardfit.converters.formats.onnx.recipe import load_recipe
from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.source.resolve import open_model
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.errors import DoesNotFitError, UsageError
from boardfit.edge.files.onnx import read_onnx
from boardfit.edge.types import GenerationConfig, Message
from tests.converters.formats.onnx.tiny_models import converted

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.xdist_group("onnx-builder")]

Q4_0_BYTES = 2_271_648  # of the sample model, as edge build --recipe q4_0 makes it


@pytest.fixture(scope="module")
def sample(request: pytest.FixtureRequest) -> Path:
    cache = request.config.cache.mkdir("boardfit-models")
    return converted(MODEL_DIR, cache, "onnx_int4_b128", n_ctx=512)


def test_size_context_and_stops(sample: Path) -> None:
    config = json.loads((sample.parent / target.CONFIG_FILE).read_text())
    assert config["model"]["context_length"] == config["search"]["max_length"] == 512
    assert config["model"]["eos_token_id"] == [2, 0]
    total = sum(path.stat().st_size for path in sample.parent.iterdir())
    assert total < 1.15 * Q4_0_BYTES
    model = read_onnx(sample)
    assert model.ops["com.microsoft.MatMulNBits"] == 21
    assert model.ops["com.microsoft.GatherBlockQuantized"] == 1, "tied: one set of bytes"
    levels = {n.ints["accuracy_level"] for n in model.nodes if n.op_type == "MatMulNBits"}
    assert levels == {4}
    bits = {n.name: n.ints["bits"] for n in model.nodes if n.op_type == "MatMulNBits"}
    assert {name for name in bits if bits[name] == 8} == {
        f"/model/layers.{i}/attn/qkv_proj/MatMul_Q8" for i in range(4)
    }
    tables = [t.shape for t in model.tensors if "cos_cache" in t.name]
    assert tables == [(512, 32)], "the rotation is stored for the planned context only"


def test_its_weights_are_as_large_as_predicted(sample: Path) -> None:
    tensors = FORMATS["onnx"].load().weigh(open_model("sample"), "onnx_int4_b128").tensors
    predicted = sum(tensor.n_bytes for tensor in tensors)
    codes = (".weight", "_Q4", "_Q8", "_scales")
    stored = sum(t.nbytes for t in read_onnx(sample).tensors if t.name.endswith(codes))
    assert stored == pytest.approx(predicted, rel=0.001), "rules of a recipe count too"


def test_tokenizer_is_the_checkpoints_own(sample: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (sample.parent / name).read_bytes() == (MODEL_DIR / name).read_bytes()


def test_it_answers(sample: Path) -> None:
    engine = open_engine("onnx", sample, EngineSettings(n_threads=1))
    try:
        prompt = engine.render([Message("user", "turn on the kitchen light")])
        events = list(engine.stream(prompt, GenerationConfig()))
        answer = json.loads("".join(event.text for event in events))
        assert answer == {"do": "light.set", "room": "kitchen", "state": "on"}
        assert events[-1].finish_reason == "stop"
        info = engine.describe()
        assert (info.quant, info.kv_type, info.n_ctx) == ("int4 b128", "f32", 512)
        assert info.details["can_abort_prefill"] and not info.details["can_save_prefix"]
    finally:
        engine.close()
    with pytest.raises(UsageError, match="512"):
        open_engine("onnx", sample, EngineSettings(n_ctx=1024))


def test_accuracy_level_follows_the_cpu() -> None:
    assert target.accuracy_level(None) == 4
    assert target.accuracy_level({"asimd", "dotprod"}) == 4
    assert target.accuracy_level({"avx2"}) == 4
    assert target.accuracy_level({"asimd"}) == 1, "Cortex-A72: no int8 products"


def test_memory_is_checked_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "available_bytes", lambda: 100 << 20)
    with pytest.raises(DoesNotFitError) as caught:
        target.convert_onnx(MODEL_DIR, tmp_path / "out", load_recipe("int4_b32"), n_ctx=512)
    assert caught.value.shortfall_bytes and not list(tmp_path.iterdir())
