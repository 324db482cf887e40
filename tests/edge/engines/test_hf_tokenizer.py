"""tokenizer.json on the board: exact ids, bytes of single tokens, stop tokens, hostile files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from tests.edge.engines import tiny_hf
from tests.edge.engines.tiny_gguf import BOS, IM_END, IM_START, N_VOCAB
from tests.edge.engines.tiny_hf import read_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_hf.write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HfTokenizer:
    return read_tokenizer(folder)


@given(text=st.text(max_size=60))
def test_pieces_put_the_text_together_again(tokenizer: HfTokenizer, text: str) -> None:
    tokens = tokenizer.tokenize(text, special=False)
    assert b"".join(map(tokenizer.piece, tokens)) == text.encode()
    assert tokenizer.detokenize(tokens) == text


def test_special_tokens(tokenizer: HfTokenizer) -> None:
    assert tokenizer.n_tokens == N_VOCAB
    assert tokenizer.tokenize("<|im_start|>hi", special=True)[0] == IM_START
    assert IM_START not in tokenizer.tokenize("<|im_start|>hi", special=False)
    assert tokenizer.piece(IM_END) == b"" and tokenizer.is_eog(IM_END)
    assert (tokenizer.bos, tokenizer.bos_text, tokenizer.eos_text) == (BOS, "<|bos|>", "<|im_end|>")
    assert tokenizer.with_bos([5]) == [BOS, 5] == tokenizer.with_bos([BOS, 5])
    assert "im_start" in (tokenizer.template or "")


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy of the folder with keys of its files changed: `tokenizer_config={"k": value}`."""
    target.mkdir()
    for path in folder.iterdir():
        document = json.loads(path.read_text())
        document |= changes.get(path.stem, {})
        (target / path.name).write_text(json.dumps(document))
    for name, text in changes.get("files", {}).items():
        (target / name).write_text(text)
    return target


def test_what_stands_beside_it_counts(folder: Path, tmp_path: Path) -> None:
    files = {
        "generation_config.json": json.dumps({"eos_token_id": [IM_END, 7], "bos_token_id": BOS}),
        "chat_template.jinja": "{{ messages }}",
    }
    config = {"bos_token": {"content": "<|bos|>"}, "add_bos_token": False}
    found = read_tokenizer(edited(folder, tmp_path / "a", tokenizer_config=config, files=files))
    assert found.end_tokens == [7, IM_END] and found.template == "{{ messages }}"
    assert found.bos == BOS and found.with_bos([5]) == [5], "said outright not to add it"


def test_bos_follows_the_post_processor_when_nothing_is_said(folder: Path, tmp_path: Path) -> None:
    silent = {"add_bos_token": None}
    with_it = edited(folder, tmp_path / "a", tokenizer_config=silent)
    assert read_tokenizer(with_it).add_bos
    without = edited(
        folder, tmp_path / "b", tokenizer_config=silent, tokenizer={"post_processor": None}
    )
    assert not read_tokenizer(without).add_bos


def test_sentencepiece_style_pieces(folder: Path, tmp_path: Path) -> None:
    """As in Llama 2 and Gemma: spaces are ▁, unknown bytes are tokens of their own."""
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }
    vocab = {"▁hello": 0, "<0xC3>": 1, "<0xA9>": 2, "é": 3, "<unk>": 4}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    model |= {"byte_fallback": True, "unk_token": "<unk>"}
    home = edited(
        folder, tmp_path / "a",
        tokenizer={"decoder": decoder, "model": model, "added_tokens": [], "pre_tokenizer": None,
                   "post_processor": None},
    )  # fmt: skip
    found = read_tokenizer(home)
    assert [found.piece(i) for i in range(4)] == [b" hello", b"\xc3", b"\xa9", "é".encode()]
    assert found.detokenize([0, 1, 2]) == " helloé"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": "1.0"}', b"\xff\xfe", b"\x80\x04."]
)
def test_broken_files_are_input_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError):
        read_tokenizer(tmp_path)


def test_missing_linked_or_unknown(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    with pytest.raises(UnsafeInputError):
        read_tokenizer(tmp_path)
    words = edited(folder, tmp_path / "b", tokenizer={"decoder": {"type": "WordPiece"}})
    with pytest.raises((UnsupportedModelError, InputError)):
        read_tokenizer(words)
    with pytest.raises(InputError, match="vocabulary"):
        read_tokenizer(folder).detokenize([10**6])


def test_text_that_is_no_unicode(tokenizer: HfTokenizer) -> None:
    with pytest.raises(InputError, match="Unicode"):
        tokenizer.tokenize("\ud800", special=False)
