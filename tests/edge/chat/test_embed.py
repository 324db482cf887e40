"""`edge run --embed`: one JSON line per text, from the command line or from standard input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from boardfit.edge.chat import embed
from boardfit.edge.chat.run_command import run
from boardfit.edge.errors import InputError, UnsupportedModelError, UsageError
from tests.edge.engines import tiny_gguf

pytestmark = pytest.mark.engine


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_gguf.random_bert(tmp_path / "tiny-encoder.gguf"))


def lines(*words: str, stdin: str | bytes | None = None) -> list[dict[str, Any]]:
    done = CliRunner().invoke(run, list(words), input=stdin, catch_exceptions=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_text_is_a_line(model: str) -> None:
    first, second = lines(model, "--embed", "hello", "another text")
    assert first["schema"] == 1 and first["kind"] == "boardfit-embedding"
    assert (first["model"], first["pooling"]) == ("tiny-encoder", "mean")
    assert len(first["vector"]) == len(second["vector"]) == 64
    assert first["n_tokens"] < second["n_tokens"]


@pytest.mark.parametrize("words", [(), ("-",)])
def test_lines_of_standard_input_are_texts(model: str, words: tuple[str, ...]) -> None:
    piped = lines(model, "--embed", *words, stdin="hello\n\n  \nanother text\r\n")
    typed = lines(model, "--embed", "hello", "another text")
    assert [line["vector"] for line in piped] == [line["vector"] for line in typed]


def test_what_is_no_text_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="standard input"):
        lines(model, "--embed", stdin=b"\xff\xfe\x00x\n")
    monkeypatch.setattr(embed, "_MAX_LINE_BYTES", 4)
    with pytest.raises(InputError, match="longer than 4 bytes"):
        lines(model, "--embed", stdin="hello\n")


def test_options_of_an_answer_are_refused(model: str) -> None:
    with pytest.raises(UsageError, match="--embed answers nothing"):
        lines(model, "--embed", "--system", "Be brief.", "hello")


def test_other_engines_make_no_vectors(tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    other.write_bytes(b"\x08\x07")
    with pytest.raises(UnsupportedModelError, match="onnx makes no vectors"):
        lines(str(other), "--embed", "hello")


def test_several_prompts_need_embed(model: str) -> None:
    with pytest.raises(UsageError, match="2 were given"):
        lines(model, "hello", "you")
