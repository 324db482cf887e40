"""`edge build --mtp`: the head that guesses tokens ahead is dropped unasked, or kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.build.command import build_command
from boardfit.converters.sample import MODEL_DIR
from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.chat.run_command import run
from boardfit.edge.errors import UsageError
from boardfit.edge.files.gguf import read_header
from tests.converters.families.cases_qwen35 import qwen35, qwen35_shapes, with_tower, wrapped
from tests.converters.families.checkpoints import write_checkpoint

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mtp") / "model"
    text = qwen35(vocab_size=2048, hidden_size=128)
    config = wrapped(text, "qwen3_5", "Qwen3_5ForConditionalGeneration")
    write_checkpoint(path, config, with_tower(qwen35_shapes(text, mtp=True)))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(MODEL_DIR / name, path / name)
    return path


def build(model: Path, output: Path, *options: str) -> str:
    words = [str(model), "-d", "raspberry-pi-5-8gb", "-o", str(output), "--no-quality", *options]
    result = CliRunner().invoke(build_command, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize(("options", "blocks"), [((), 4), (("--mtp", "keep"), 5)])
def test_the_head_is_dropped_unasked(
    options: tuple[str, ...], blocks: int, model: Path, tmp_path: Path
) -> None:
    text = build(model, tmp_path / "out", *options)
    assert ("left out the MTP head (15 tensors, " in text) is (blocks == 4)
    assert "left out the vision tower (3 tensors, " in text
    header = read_header(open_bundle(tmp_path / "out").model_path)
    assert header.integer("qwen35.block_count") == blocks
    assert header.integer("qwen35.nextn_predict_layers") == (1 if blocks == 5 else None)
    answer = CliRunner().invoke(
        run, [str(tmp_path / "out"), "hello", "--max-tokens", "3"], catch_exceptions=False
    )
    assert answer.exit_code == 0


def test_a_gguf_keeps_what_it_has(model: Path, tmp_path: Path) -> None:
    build(model, tmp_path / "out")
    file = open_bundle(tmp_path / "out").model_path
    with pytest.raises(UsageError, match="--mtp is for a checkpoint"):
        build(file, tmp_path / "again", "--mtp", "drop")
