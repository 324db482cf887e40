"""A checkpoint that normalizes text is told apart from a wrong vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.limits import find_normalizer
from boardfit.converters.tokenizers.loading import load_tokenizer
from boardfit.converters.tokenizers.verify import VerifyReport, verify_vocabulary
from boardfit.converters.tokenizers.vocabulary import write_vocab_only
from boardfit.edge.errors import IntegrityError
from tests.converters.tokenizers.conftest import Checkpoint, train_byte_level, train_sentence_piece

pytestmark = pytest.mark.engine


def write(
    checkpoint: Checkpoint, arch: str = "llama", *, swapped: tuple[int, int] | None = None
) -> Path:
    """The vocabulary as a build writes it; `swapped` exchanges two tokens."""
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config, arch)
    if swapped is not None:
        one, two = swapped
        vocabulary = tokenizer.vocabulary
        tokens = list(vocabulary.tokens)
        tokens[one], tokens[two] = tokens[two], tokens[one]
        tokenizer = replace(tokenizer, vocabulary=replace(vocabulary, tokens=tokens))
    path = checkpoint.directory / "vocab.gguf"
    write_vocab_only(tokenizer, arch, path)
    return path


def verify(checkpoint: Checkpoint, path: Path, *, accept: bool) -> VerifyReport:
    return verify_vocabulary(
        path, checkpoint.directory, checkpoint.config, accept_normalization=accept
    )


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_sentence_pieces_defaults_need_consent(tmp_path: Path, dummy_prefix: bool) -> None:
    found = train_sentence_piece(tmp_path / "c", dummy_prefix=dummy_prefix, normalizes=True)
    path = write(found, "llama" if dummy_prefix else "gemma2")
    with pytest.raises(IntegrityError, match="not a wrong vocabulary") as caught:
        verify(found, path, accept=False)
    assert "--accept-tokenizer" in (caught.value.next_step or "")
    [limit] = [text for text in verify(found, path, accept=True).limits if "normalize" in text]
    assert "texts)" in limit


@pytest.mark.parametrize("normalizer", ["NFKC", "Lowercase"])
def test_a_normalizer_in_tokenizer_json_needs_consent(tmp_path: Path, normalizer: str) -> None:
    found = train_byte_level(tmp_path / "c", normalizer=normalizer)
    path = write(found)
    with pytest.raises(IntegrityError, match="not a wrong vocabulary"):
        verify(found, path, accept=False)
    assert any("normalize" in text for text in verify(found, path, accept=True).limits)


@pytest.mark.parametrize("accept", [False, True])
def test_a_wrong_vocabulary_is_refused_in_any_case(tmp_path: Path, accept: bool) -> None:
    found = train_sentence_piece(tmp_path / "c", normalizes=True)
    pieces = load_tokenizer(found.directory, found.config, "llama").vocabulary.tokens
    path = write(found, swapped=(pieces.index("e"), pieces.index("t")))
    with pytest.raises(IntegrityError, match="differs from id"):
        verify(found, path, accept=accept)


def test_a_plain_model_needs_none(sentence_piece: Checkpoint) -> None:
    report = verify(sentence_piece, write(sentence_piece), accept=False)
    assert not any("normalize" in text for text in report.limits)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_normalized_text_is_as_a_user_would_write_it(tmp_path: Path, dummy_prefix: bool) -> None:
    found = train_sentence_piece(tmp_path / "c", dummy_prefix=dummy_prefix, normalizes=True)
    normalize = find_normalizer(TokenizerFiles(found.directory, found.config), ())
    assert normalize is not None
    assert normalize("  one  two ") == "one two" and normalize("ｆｕｌｌ") == "full"
    assert normalize(normalize("\tx ")) == normalize("\tx ") == "x"
