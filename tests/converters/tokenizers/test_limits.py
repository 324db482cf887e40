"""Which texts a limit of the engine excuses: derived from the tokenizer's definition alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.limits import find_limits


def limits_of(directory: Path, model: str) -> list[str]:
    return [limit.explanation for limit in find_limits(files_with(directory, model), "", ())]


def files_with(directory: Path, model: str) -> TokenizerFiles:
    vocab = {"[UNK]": 0, "a": 1, "##b": 2}
    document = {"model": {"type": model, "vocab": vocab, "unk_token": "[UNK]"}}
    if model == "WordPiece":
        document["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    else:
        document["model"] |= {"merges": []}
    (directory / "tokenizer.json").write_text(json.dumps(document))
    return TokenizerFiles(directory, {})


@pytest.mark.parametrize(
    ("text", "is_excused"),
    [
        ("plain words, 12.5 and naïve café", False),
        ("cafe\u0301", False),
        ("東京 и Привет", False),
        ("a\tb\r\nc", False),
        ("x" * 100, False),
        ("x" * 101, True),
        ("안녕", True),
        ("हिन्दी", True),
        ("a\x0bb", True),
    ],
)
def test_word_piece_differs_on_few_scripts(tmp_path: Path, text: str, is_excused: bool) -> None:
    (limit,) = find_limits(files_with(tmp_path, "WordPiece"), "", ())
    assert limit.applies(text) is is_excused
    assert not limit.needs_consent


def test_other_vocabularies_are_not_excused(tmp_path: Path) -> None:
    assert limits_of(tmp_path, "BPE") == []
