"""The sample model by one `edge build` in all four formats: it answers in every engine, it is as
near to its source as Q4_0 and no larger, and what is inside the files is right.
"""

from __future__ import annotations

import json
import subprocess
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.converters.formats.base import FORMATS, GGUF
from boardfit.converters.formats.gguf.recipe import load_recipe as load_ggml_recipe
from boardfit.converters.formats.gguf.write import write_many
from boardfit.converters.formats.litert.convert import convert_litert
from boardfit.converters.formats.litert.recipe import load_recipe
from boardfit.converters.quality.card import measure_text
from boardfit.converters.quality.reference import read_references
from boardfit.converters.quality.texts import texts_for
from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.source.hf import open_directory
from boardfit.converters.source.resolve import open_model
from boardfit.edge.bundle.bundle import Bundle, sha256_file
from boardfit.edge.chat.run_command import run
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.litert.container import read_container
from boardfit.edge.engines.litert.tflite_check import check_tflite
from tests.converters.formats.litert.conftest import N_CTX

REFERENCE = Path(__file__).with_name("reference_driver.py")
#: Of what a recipe of ours may weigh, against Q4_0.
SIZE_BOUND, DIVERGENCE_BOUND = 1.15, 1.5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.xdist_group("litert-sample"),
]


@pytest.fixture(scope="module")
def q4_0(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Q4_0's size and divergence on the named text, which every model is measured on."""
    home = tmp_path_factory.mktemp("q4_0")
    spec = open_directory(MODEL_DIR)
    reference = read_references(spec, texts_for(spec)[1:], N_CTX, home, threads=1)[0]
    path = home / "q4_0.gguf"
    write_many(spec, [(load_ggml_recipe("q4_0"), path)], threads=1)
    settings = EngineSettings(n_ctx=N_CTX, n_threads=1)
    with closing(open_engine("llama_cpp", path, settings)) as engine:
        found = measure_text(engine, reference, lambda done, total: None)
    return {**found, "n_bytes": path.stat().st_size}


# ---- every format ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_it_answers_through_the_engine_of_its_format(name: str, built: dict[str, Bundle]) -> None:
    bundle = built[name]
    words = [str(bundle.path), "turn on the kitchen lights", "--json"]
    answer = json.loads(CliRunner().invoke(run, words, catch_exceptions=False).stdout)
    assert json.loads(answer["text"]) == {"do": "light.set", "room": "kitchen", "state": "on"}
    settings = EngineSettings.from_plan(bundle.plan)
    with closing(open_engine(bundle.plan.engine, bundle.model_path, settings)) as engine:
        info = engine.describe()
    assert info.n_ctx == bundle.plan.n_ctx == N_CTX
    if name in ("litertlm", "tflite"):
        assert info.quant == bundle.plan.recipe == FORMATS[name].recipe


@pytest.mark.parametrize("name", FORMATS)
def test_the_card_is_on_the_same_text_and_within_bounds(
    name: str, built: dict[str, Bundle]
) -> None:
    own, prose = built[name].manifest["quality"]["texts"]
    assert built[name].manifest["quality"]["within_bounds"] and own["top1_agree"] > 0.98
    assert prose["sha256"] == built[GGUF].manifest["quality"]["texts"][1]["sha256"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != GGUF])
def test_no_further_from_the_source_than_q4_0_and_no_larger(
    name: str, built: dict[str, Bundle], q4_0: dict[str, Any]
) -> None:
    """The target: 1.5 times the divergence of Q4_0 at no more than 1.15 times its size."""
    own = built[name].manifest["quality"]["texts"][1]
    assert own["sha256"] == q4_0["sha256"]
    assert own["kld_mean"] <= DIVERGENCE_BOUND * q4_0["kld_mean"]
    parts = [f for f in built[name].files if f.role in ("model", "part")]
    if name != "tflite":
        assert sum(f.n_bytes for f in parts) <= SIZE_BOUND * q4_0["n_bytes"]
    target = FORMATS[name]
    predicted = target.load().weigh(open_model("sample"), target.recipe).artifact_bytes
    assert built[name].plan.artifact_bytes == pytest.approx(predicted, rel=0.25)


# ---- what is inside -------------------------------------------------------------------------


def test_what_is_in_the_container(built: dict[str, Bundle]) -> None:
    container = read_container(built["litertlm"].model_path)
    assert sorted(container.stop_ids) == [0, 2]
    assert container.stop_texts == ()
    assert container.start is None
    assert container.template == (MODEL_DIR / "chat_template.jinja").read_text()
    tokenizer = container.tokenizer_json()
    assert tokenizer is not None
    data = tokenizer if tokenizer.startswith(b"{") else zlib.decompress(tokenizer)
    assert json.loads(data) == json.loads((MODEL_DIR / "tokenizer.json").read_text())
    path = container.path
    header = check_tflite(path, container.model.offset, container.model.n_bytes)
    assert set(header.signatures) == {"prefill_16", "prefill_128", "decode"}
    assert header.recipe == "litert_int4_b128_best"


def test_the_manifest_tells_the_types(built: dict[str, Bundle]) -> None:
    recipe = built["litertlm"].manifest["recipe"]
    assert recipe["tensor_types"] == {"int8": 2048 * 256, "int4-b128": 3145728}
    assert 4.6 < recipe["bpw"] < 4.8


def test_plain_has_no_composites_and_computes(
    built: dict[str, Bundle], litert_python: Path
) -> None:
    path = built["tflite"].model_path
    assert "STABLEHLO_COMPOSITE" not in check_tflite(path).operators
    result = subprocess.run(
        [litert_python, REFERENCE, MODEL_DIR, path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["finite"] and found["same_top"] >= 0.8 and found["error"] < 0.35


def test_the_same_input_gives_the_same_bytes_in_little_memory(
    litert_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_LITERT_PYTHON", str(litert_python))
    spec, recipe = open_directory(MODEL_DIR), load_recipe("litert_int8")
    for name in ("a.litertlm", "b.litertlm"):
        convert_litert(
            spec, MODEL_DIR, recipe, tmp_path / name, prefill_lengths=[16], cache_length=32,
            threads=1, memory_bytes=1 << 30,
        )  # fmt: skip
    assert sha256_file(tmp_path / "a.litertlm") == sha256_file(tmp_path / "b.litertlm")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a.litertlm", "b.litertlm"], "nothing else is left behind"
