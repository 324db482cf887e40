"""The sample model as LiteRT: what is inside the file, how far it is from the source, and the same
bytes every time.
"""

from __future__ import annotations

import json
import subprocess
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from converters.litert_recipe import load_recipe
from converters.quality.card import measure_text
from converters.quality.reference import read_references
from converters.quality.texts import texts_for
from converters.quantize import write_many
from converters.recipes import load_recipe as load_ggml_recipe
from converters.sample import MODEL_DIR
from converters.source.hf import open_directory
from converters.target.tflite import LitertArtifact, convert_litert
from edge.bundle import sha256_file
from edge.engines import EngineSettings, is_installed, open_engine
from edge.engines.litert_container import read_container
from edge.engines.tflite_check import check_tflite

from .conftest import Convert

REFERENCE = Path(__file__).with_name("reference_driver.py")
BEST = "litert_int4_b32_best"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("litert-sample")]


def compared(python: Path, path: Path, *bounds: int) -> dict[str, float]:
    result = subprocess.run(
        [python, REFERENCE, MODEL_DIR, path, *map(str, bounds)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_what_is_in_the_container(sample_in: Convert) -> None:
    artifact = sample_in(BEST)
    container = read_container(artifact.path)
    assert sorted(container.stop_ids) == [0, 2]
    assert container.stop_texts == ()
    assert container.start is None
    assert container.template == (MODEL_DIR / "chat_template.jinja").read_text()
    tokenizer = container.tokenizer_json()
    assert tokenizer is not None
    data = tokenizer if tokenizer.startswith(b"{") else zlib.decompress(tokenizer)
    assert json.loads(data) == json.loads((MODEL_DIR / "tokenizer.json").read_text())
    header = check_tflite(artifact.path, container.model.offset, container.model.n_bytes)
    assert {"prefill_128", "decode"} <= set(header.signatures)


def test_the_record_tells_the_truth(sample_in: Convert) -> None:
    artifact = sample_in(BEST)
    assert artifact.nbytes == artifact.path.stat().st_size
    assert artifact.sha256 == sha256_file(artifact.path)
    assert artifact.types == {"int8": 2048 * 256, "int4-b32": 3145728}
    assert 5.0 < artifact.bpw < 5.1
    assert [p.name for p in artifact.path.parent.iterdir()] == [artifact.path.name]


def test_memory_stays_far_below_upstreams(sample_in: Convert) -> None:
    artifact: LitertArtifact = sample_in(BEST)
    if artifact.peak_anon_bytes is not None:
        assert artifact.peak_anon_bytes < 1024**3


def test_no_further_from_the_source_than_q4_0(sample_in: Convert, tmp_path: Path) -> None:
    """The target: within 1.5 times the divergence of Q4_0 at no more than 1.15 times its size."""
    if not (is_installed("llama_cpp") and is_installed("litert")):
        pytest.skip("needs llama-cpp-python and litert-lm-api")
    spec = open_directory(MODEL_DIR)
    reference = read_references(spec, texts_for(spec)[:1], 512, tmp_path, threads=1)[0]
    q4_0 = tmp_path / "q4_0.gguf"
    write_many(spec, [(load_ggml_recipe("q4_0"), q4_0)], threads=1)
    divergence = {}
    for engine, path in (("llama_cpp", q4_0), ("litert", sample_in(BEST).path)):
        with closing(open_engine(engine, path, EngineSettings(n_ctx=512, n_threads=1))) as opened:
            divergence[engine] = measure_text(opened, reference, lambda done, total: None)
    ours, theirs = divergence["litert"], divergence["llama_cpp"]
    assert ours["kld_mean"] <= 1.5 * theirs["kld_mean"]
    assert ours["top1_agree"] > 0.99
    assert sample_in(BEST).nbytes <= 1.15 * q4_0.stat().st_size


def test_plain_has_no_composites_and_computes(sample_in: Convert, litert_python: Path) -> None:
    artifact = sample_in("tflite_int8")
    header = check_tflite(artifact.path)
    assert "STABLEHLO_COMPOSITE" not in header.operators
    found = compared(litert_python, artifact.path)
    assert found["finite"]
    assert found["same_top"] >= 0.9
    assert found["error"] < 0.1


def test_the_same_input_gives_the_same_bytes(
    litert_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_LITERT_PYTHON", str(litert_python))
    spec = open_directory(MODEL_DIR)
    digests = set()
    for name in ("a", "b"):
        artifact = convert_litert(
            spec,
            MODEL_DIR,
            load_recipe("litert_int8"),
            tmp_path / name,
            prefill_lengths=[16],
            cache_length=32,
            threads=1,
        )
        digests.add(artifact.sha256)
    assert len(digests) == 1
