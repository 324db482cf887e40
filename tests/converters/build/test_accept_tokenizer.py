"""A checkpoint whose tokenizer normalizes text is built with consent, and its bundle states it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from boardfit.converters.build.command import build_command
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.bundle.command import show
from boardfit.edge.errors import IntegrityError
from tests.edge.engines import tiny_gguf, tiny_hf

pytestmark = pytest.mark.engine


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    tensors = tiny_gguf.llama_tensors(np.random.default_rng(0), 128, 2, 128)
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    tiny_hf.write_llama(folder, tensors, n_ctx=512)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tokenizer, "normalizer": {"type": "Lowercase"}}))
    return folder


def test_what_the_engine_reads_otherwise_is_accepted_and_shown(
    checkpoint: Path, tmp_path: Path
) -> None:
    words = [str(checkpoint), "-d", "raspberry-pi-5-8gb", "-o", str(tmp_path / "b")]
    words += ["--no-quality", "--recipe", "f16"]
    with pytest.raises(IntegrityError, match="not a wrong vocabulary") as caught:
        CliRunner().invoke(build_command, words, catch_exceptions=False)
    assert "--accept-tokenizer" in (caught.value.next_step or "")
    assert not (tmp_path / "b").exists()
    run = CliRunner().invoke(build_command, [*words, "--accept-tokenizer"], catch_exceptions=False)
    assert "tokenizer: the engine does not normalize text" in run.stdout
    card = open_bundle(tmp_path / "b").manifest["quality"]
    assert any("normalize" in text for text in card["tokenizer"])
    shown = CliRunner().invoke(show, [str(tmp_path / "b")], catch_exceptions=False)
    assert "reads    the engine does not normalize text" in shown.output
