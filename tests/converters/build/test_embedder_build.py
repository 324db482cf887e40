"""An embedding model in a GGUF through the whole build: no checkpoint, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from click.testing import CliRunner

from boardfit.converters.build import verify
from boardfit.converters.build.command import build_command
from boardfit.converters.source.gguf import open_gguf
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.bundle.quality_text import quality_lines
from boardfit.edge.chat.run_command import run
from boardfit.edge.errors import IntegrityError
from tests.edge.engines import tiny_gguf

pytestmark = pytest.mark.engine
BOARD = "raspberry-pi-5-8gb"


def invoke(command: Any, *words: str | Path) -> str:
    done = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize(("name", "n_ubatch", "heads"), [("bert", 256, {0}), ("decoder", 512, {2})])
def test_a_gguf_is_quantized_and_measured(
    tmp_path: Path, name: str, n_ubatch: int, heads: set[int]
) -> None:
    source, out = tmp_path / f"tiny-{name}.gguf", tmp_path / "out"
    if name == "bert":
        tiny_gguf.random_bert(source)
    else:
        tiny_gguf.random_llama(source, pooling=gguf.PoolingType.LAST, template=None)
    spec = open_gguf(source)
    assert spec.is_embedder and spec.reads_at_once == (name == "bert")
    assert {layer.n_head_kv for layer in spec.shape.layers} == heads
    words = ("-d", BOARD, "-o", out, "--recipe", "q8_0", "--threads", "1")
    assert f"next: edge run {out} --embed TEXT" in invoke(build_command, source, *words)
    bundle = open_bundle(out)
    assert bundle.plan.n_ubatch == min(n_ubatch, bundle.plan.n_ctx)
    assert bundle.manifest["checks"]["engine"]["pooling"] == spec.pooling
    assert bundle.manifest["quality"]["reference"]["kind"] == "source GGUF"
    assert bundle.manifest["quality"]["texts"][0]["cosine_mean"] > 0.99
    assert quality_lines(bundle.manifest)[0].startswith("cosine ")
    line = json.loads(invoke(run, out, "--embed", "hello"))
    assert len(line["vector"]) == spec.shape.n_embd


def test_vectors_that_are_all_the_same_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf.random_bert(tmp_path / "tiny.gguf")
    monkeypatch.setattr(verify, "_TRIAL_TEXTS", ("hello", "hello"))
    with pytest.raises(IntegrityError, match="the same vector"):
        verify.check_artifact(path, open_gguf(path))
