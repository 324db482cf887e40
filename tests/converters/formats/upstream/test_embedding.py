"""Embedding models: pooling and dense layers kept, vectors equal to those of transformers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.build.command import build_command
from boardfit.converters.formats.base import FORMATS
from boardfit.converters.formats.upstream import convert
from boardfit.converters.source.hf import NoFamilyError, open_directory
from boardfit.device_profiles.catalog import find_profile
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.bundle.quality_text import quality_lines
from boardfit.edge.chat.run_command import run
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.engines.llama.embedding import LlamaEmbedder
from boardfit.edge.engines.model_file import built_file
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import UnsafeInputError, UnsupportedModelError
from tests.converters.families.checkpoints import write_checkpoint
from tests.converters.formats.upstream.checkpoints import (
    change_document,
    write_bert,
    write_embedding_gemma,
    write_modules,
    write_nomic,
    write_qwen3_embedding,
)
from tests.converters.formats.upstream.test_convert import invoke

DRIVER = Path(__file__).with_name("vectors_driver.py")
TEXTS = ("How warm is the board?", "naïve café, 12 345.6", "The station is far away. " * 30)
KINDS: dict[str, tuple[Callable[[Path, Path], Path], str, str]] = {
    "bert": (write_bert, "bert", "cls"),
    "qwen3": (write_qwen3_embedding, "qwen3", "last"),
    "gemma": (write_embedding_gemma, "gemma-embedding", "mean"),
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A checkpoint whose modules make it an embedding model."""
    directory = tmp_path / "plain"
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    write_checkpoint(directory, config, {"embed_tokens.weight": (64, 32)})
    write_modules(directory, "lasttoken")
    return directory


def refusal(directory: Path) -> NoFamilyError:
    with pytest.raises(NoFamilyError) as caught:
        open_directory(directory)
    return caught.value


def test_modules_decide_what_a_checkpoint_is_for(plain: Path) -> None:
    assert convert.list_options(refusal(plain).origin) == []
    checkpoint = convert.SafetensorsCheckpoint(plain, refusal(plain).origin.config)
    linked = convert.link_checkpoint(checkpoint, plain.parent / "linked")
    assert (linked / "modules.json").is_file() and (linked / "1_Pooling/config.json").is_file()
    before = convert.identify(checkpoint, refusal(plain).origin, None)
    (plain / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    after = convert.identify(checkpoint, refusal(plain).origin, None)
    assert before.fingerprint != after.fingerprint


def test_a_module_that_would_be_lost_is_refused(plain: Path) -> None:
    modules = [{"path": "1_Pooling", "type": "x.Pooling"}, {"path": "2_Dense", "type": "x.Dense"}]
    (plain / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match="the module Dense would be left out"):
        convert.list_options(refusal(plain).origin)


def test_two_poolings_are_refused(plain: Path) -> None:
    change_document(plain / "1_Pooling/config.json", pooling_mode_mean_tokens=True)
    with pytest.raises(UnsupportedModelError, match="pooling_mode_lasttoken and pooling_mode_mean"):
        convert.list_options(refusal(plain).origin)


def test_a_module_outside_the_checkpoint_is_refused(plain: Path) -> None:
    (plain / "modules.json").write_text('[{"path": "../other", "type": "x.Pooling"}]')
    with pytest.raises(UnsafeInputError, match="expected a folder"):
        convert.list_options(refusal(plain).origin)


@pytest.fixture
def upstream(oracle_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOARDFIT_UPSTREAM_PYTHON", str(oracle_python))


@pytest.mark.oracle
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.usefixtures("upstream")
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_transformers(
    tmp_path: Path, llama_cpp_tree: Path, oracle_python: Path, kind: str
) -> None:
    write, arch, pooling = KINDS[kind]
    source = write(tmp_path / kind, llama_cpp_tree)
    spec = convert.open_any_model(source)
    assert (spec.arch, spec.pooling, spec.is_embedder) == (arch, pooling, True)
    assert not any(layer.n_head_kv for layer in spec.shape.layers) or kind == "qwen3"
    (made,) = cache_directory().glob("converted/*/model.gguf")
    settings = EngineSettings(n_ctx=512, kv_type="f32", n_ubatch=64)
    with closing(LlamaEmbedder.open(built_file(made), settings)) as embedder:
        got = np.array([embedder.embed(text)[0] for text in TEXTS])
        ids = [embedder.tokenize(text) for text in TEXTS]
    assert max(map(len, ids)) > 64, "one text takes several steps"
    job = {"model": str(source), "pooling": pooling, "ids": ids}
    done = subprocess.run(
        [oracle_python, DRIVER], input=json.dumps(job), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = np.array(json.loads(done.stdout.splitlines()[-1]))
    assert np.abs(got - expected).max() < 2e-3
    profile = find_profile("raspberry-pi-5-8gb")
    for row in (row for row in FORMATS.values() if not row.is_streamed):
        with pytest.raises(UnsupportedModelError, match="an embedding model"):
            row.load().check_supported(spec, profile)


@pytest.mark.oracle
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.usefixtures("upstream")
def test_an_embedding_model_is_built_and_makes_vectors(
    tmp_path: Path, llama_cpp_tree: Path
) -> None:
    """From a repository with code of its own, which is not run, and a padded vocabulary."""
    source, out = write_nomic(tmp_path / "tiny-nomic", llama_cpp_tree), tmp_path / "out"
    done = invoke(build_command, source, "-d", "raspberry-pi-5-8gb", "-o", out, "--threads", "1")
    assert "--embed TEXT" in done.stdout
    manifest = open_bundle(out).manifest
    assert manifest["model"]["pooling"] == manifest["checks"]["engine"]["pooling"] == "mean"
    assert manifest["quality"]["texts"][0]["cosine_min"] > 0.9
    assert quality_lines(manifest)[0].startswith("cosine ")
    assert open_bundle(out).plan.n_ubatch == open_bundle(out).plan.n_ctx == 512
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in invoke(run, out, "--embed", *TEXTS[:2]).stdout.splitlines()
    ]
    assert [line["pooling"] for line in lines] == ["mean", "mean"]
    assert np.linalg.norm(lines[0]["vector"]) == pytest.approx(1)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.usefixtures("upstream")
def test_without_a_pooling_nothing_is_built(tmp_path: Path, llama_cpp_tree: Path) -> None:
    source = write_bert(tmp_path / "bert", llama_cpp_tree)
    (source / "modules.json").unlink()
    with pytest.raises(UnsupportedModelError, match="whose pooling is unknown"):
        convert.open_any_model(source)
