"""Gemma 4's kind of vocabulary, trained here: merges by rank over text whose spaces are U+2581."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.tokenizers.loading import load_tokenizer
from boardfit.converters.tokenizers.verify import verify_vocabulary
from boardfit.converters.tokenizers.vocabulary import TokenType, write_vocab_only
from boardfit.edge.errors import IntegrityError
from tests.converters.tokenizers.conftest import TEXT, Checkpoint

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>")


@pytest.fixture
def gemma4(tmp_path: Path) -> Checkpoint:
    """As an instruction model: no BOS around a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    pieces = {f"<0x{byte:02X}>": 8 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    # Bytes are reserved first, as special tokens, and are ordinary ones in the file.
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=[*special, *pieces], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.replace("\n", " \n ").split("\n") * 2, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = definition["added_tokens"][: len(SPECIAL)]
    config: dict[str, Any] = {"model_type": "gemma4_text", "vocab_size": 520, "eos_token_id": 1}
    checkpoint = Checkpoint(tmp_path, config)
    checkpoint.write("tokenizer.json", definition)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    checkpoint.write("tokenizer_config.json", names)
    checkpoint.write("config.json", config)
    return checkpoint


def entries(checkpoint: Checkpoint, arch: str = "gemma4") -> dict[str, Any]:
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config, arch)
    return {e.key.removeprefix("tokenizer.ggml."): e.value for e in tokenizer.metadata()}


def test_metadata(gemma4: Checkpoint) -> None:
    found = entries(gemma4)
    assert (found["model"], found["add_space_prefix"], found["add_bos_token"]) == (
        "gemma4", False, True,
    )  # fmt: skip
    assert "pre" not in found
    assert set(found["scores"]) == {-1000.0}
    assert len(found["merges"]) > 100
    kinds = dict(zip(found["tokens"], found["token_type"], strict=True))
    assert kinds["<|turn>"] == kinds["<unk>"] == TokenType.CONTROL
    assert kinds["<|channel>"] == kinds["<channel|>"] == TokenType.USER_DEFINED
    assert kinds["<0x0A>"] == TokenType.BYTE


@pytest.mark.engine
def test_the_engine_gives_the_checkpoint_s_ids(gemma4: Checkpoint) -> None:
    path = gemma4.directory / "vocab.gguf"
    write_vocab_only(load_tokenizer(gemma4.directory, gemma4.config, "gemma4"), "gemma4", path)
    report = verify_vocabulary(path, gemma4.directory, gemma4.config)
    assert len(report.limits) == 1
    assert "BOS before every text" in report.limits[0]


@pytest.mark.engine
def test_another_token_around_a_text_is_still_refused(gemma4: Checkpoint) -> None:
    path = gemma4.directory / "vocab.gguf"
    write_vocab_only(load_tokenizer(gemma4.directory, gemma4.config, "gemma4"), "gemma4", path)
    definition = gemma4.read("tokenizer.json")
    end = {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
    }
    gemma4.write("tokenizer.json", definition)
    with pytest.raises(IntegrityError, match="special tokens around a text differ"):
        verify_vocabulary(path, gemma4.directory, gemma4.config)


def test_suppressed_tokens_of_the_12b_model(gemma4: Checkpoint) -> None:
    gemma4.write("generation_config.json", {"suppress_tokens": [6, 7]})
    assert "suppress_tokens" not in entries(gemma4)
    gemma4.config["model_type"] = "gemma4_unified"
    assert entries(gemma4)["suppress_tokens"] == [6, 7]
