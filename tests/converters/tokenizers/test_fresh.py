"""Vocabularies that no hash table knows: trained or extended here, held against the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boardfit.converters.tokenizers.engine_vocab import open_vocab
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.loading import load_tokenizer
from boardfit.converters.tokenizers.pretokenizer import PATTERNS
from boardfit.converters.tokenizers.reference import load_reference
from boardfit.converters.tokenizers.verify import VerifyReport, verify_vocabulary
from boardfit.converters.tokenizers.vocabulary import write_vocab_only
from boardfit.edge.errors import (
    EngineError,
    InputError,
    IntegrityError,
    UnsafeInputError,
    UnsupportedModelError,
)
from tests.converters.tokenizers.conftest import (
    CHATML,
    Checkpoint,
    train_byte_level,
    train_sentence_piece,
)
from tests.converters.tokenizers.rebuild import ADDED_FLAGS

pytestmark = pytest.mark.engine


def verified(checkpoint: Checkpoint, arch: str = "llama", pre: str | None = None) -> VerifyReport:
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config, arch, pre=pre)
    path = checkpoint.directory / "vocab.gguf"
    write_vocab_only(tokenizer, arch, path)
    return verify_vocabulary(path, checkpoint.directory, checkpoint.config)


@pytest.mark.parametrize(
    ("name", "regex"),
    [
        ("dbrx", PATTERNS["llama3"]),
        ("dbrx", PATTERNS["cl100k"]),
        ("qwen2", PATTERNS["qwen2"]),
        ("gpt-2", PATTERNS["gpt2"]),
        ("qwen35", PATTERNS["qwen35"]),
        ("seed-coder", PATTERNS["seed_coder"]),
        ("bailingmoe", PATTERNS["bailing"]),
        ("ufakzeka", PATTERNS["ufakzeka"]),
        ("gpt-4o", PATTERNS["gpt4o"]),
    ],
)
def test_fresh_vocabulary_is_recognised_by_its_pattern(
    tmp_path: Path, name: str, regex: str
) -> None:
    report = verified(train_byte_level(tmp_path / name, regex=regex))
    assert report.pre == name
    assert report.n_texts > 430
    assert report.turn_end == "<|im_end|>"


def test_patterns_that_split_one_after_the_other(tmp_path: Path) -> None:
    checkpoint = train_byte_level(tmp_path / "c")
    definition = checkpoint.read("tokenizer.json")
    definition["pre_tokenizer"]["pretokenizers"] = [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]
    checkpoint.write("tokenizer.json", definition)
    assert verified(checkpoint).pre == "smollm"


def test_extended_vocabulary(byte_level: Checkpoint) -> None:
    """A fine-tune's new tokens, declared where transformers declares them, with padding after."""
    n = byte_level.config["vocab_size"]
    decoder = {
        str(n): {"content": "<|tool|>", "special": True, "normalized": False},
        str(n + 1): {"content": "frobnicate", "special": False, "normalized": False},
    }
    byte_level.change("tokenizer_config.json", added_tokens_decoder=decoder)
    byte_level.config["vocab_size"] = n + 10
    report = verified(byte_level)
    assert report.n_tokens == n + 10
    tokenizer = load_tokenizer(byte_level.directory, byte_level.config)
    values = {entry.key: entry.value for entry in tokenizer.metadata()}
    assert values["tokenizer.ggml.tokens"][n:] == [
        "<|tool|>",
        "frobnicate",
        *(f"[PAD{i}]" for i in range(n + 2, n + 10)),
    ]
    assert values["tokenizer.ggml.token_type"][n:] == [3, 4, *[5] * 8]


def test_decomposed_text_is_a_named_limit(tmp_path: Path) -> None:
    report = verified(train_byte_level(tmp_path / "c", normalizer="NFC"))
    assert len(report.limits) == 1
    assert "NFC" in report.limits[0]


def test_normalizer_that_the_engine_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="splits text differently"):
        verified(train_byte_level(tmp_path / "c", normalizer="Lowercase"))


def test_wrong_pre_tokenizer_is_caught_with_the_text(byte_level: Checkpoint) -> None:
    with pytest.raises(IntegrityError) as caught:
        verified(byte_level, pre="deepseek-coder")
    message = str(caught.value)
    assert "text '" in message
    assert "the engine gives [" in message
    assert "the checkpoint's tokenizer [" in message


def test_unknown_pattern_is_found_by_trying(tmp_path: Path) -> None:
    # Qwen2's pattern, written so that no spelling rule folds it into the known one.
    regex = PATTERNS["qwen2"].replace(r"|\p{N}|", r"|\p{N}(?:)|")
    assert verified(train_byte_level(tmp_path / "c", regex=regex)).pre == "qwen2"


@pytest.mark.slow
def test_pattern_of_no_engine_is_refused_with_the_nearest(tmp_path: Path) -> None:
    checkpoint = train_byte_level(tmp_path / "c", regex=r"[aeiou]+|[^aeiou]+")
    with pytest.raises(UnsupportedModelError, match=r"the nearest, '.*', differs on .* text"):
        load_tokenizer(checkpoint.directory, checkpoint.config)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_fresh_sentence_piece(tmp_path: Path, dummy_prefix: bool) -> None:
    checkpoint = train_sentence_piece(tmp_path / "c", dummy_prefix=dummy_prefix)
    report = verified(checkpoint, "llama" if dummy_prefix else "gemma2")
    assert report.source == "tokenizer.model"
    assert report.n_tokens == 420
    assert report.eog_ids == (2,)


def test_sentence_piece_with_chat_tokens_and_padding(sentence_piece: Checkpoint) -> None:
    decoder = {
        "420": {"content": "<|im_start|>", "special": True},
        "421": {"content": "<|im_end|>", "special": True},
    }
    sentence_piece.change(
        "tokenizer_config.json", added_tokens_decoder=decoder, chat_template=CHATML
    )
    sentence_piece.config.update(vocab_size=448, eos_token_id=421)
    report = verified(sentence_piece)
    assert report.n_tokens == 448
    assert report.turn_end == "<|im_end|>"


def test_prefix_space_only_before_the_first_word_is_a_named_limit(
    sentence_piece: Checkpoint,
) -> None:
    """Mistral's way since v0.3: the engine puts a space after every special token all the same."""
    from sentencepiece import SentencePieceProcessor

    path = str(sentence_piece.directory / "tokenizer.model")
    pieces = SentencePieceProcessor(model_file=path)
    vocab = {pieces.IdToPiece(i): i for i in range(420)}
    ranked = sorted((i for i in range(259, 420)), key=lambda i: -pieces.GetScore(i))
    merges = [
        [text[:k], text[k:]]
        for text in map(pieces.IdToPiece, ranked)
        for k in range(1, len(text))
        if text[:k] in vocab and text[k:] in vocab
    ]
    added = [{"id": i, "content": t, **ADDED_FLAGS} for i, t in enumerate(("<unk>", "<s>", "</s>"))]
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": False}
    sentence_piece.write(
        "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {**metaspace, "prepend_scheme": "first"},
            "post_processor": None,
            "decoder": {**metaspace, "prepend_scheme": "first"},
            "model": {
                "type": "BPE",
                "unk_token": "<unk>",
                "fuse_unk": True,
                "byte_fallback": True,
                "vocab": vocab,
                "merges": merges,
            },
        },
    )
    report = verified(sentence_piece)
    assert report.source == "tokenizer.json"
    assert len(report.limits) == 1
    assert "after every special token" in report.limits[0]


def test_special_token_past_the_rows_that_nobody_uses_is_left_out(
    sentence_piece: Checkpoint, byte_level: Checkpoint
) -> None:
    """Gemma 3's text models come with `<image_soft_token>` one past the embedding."""
    for checkpoint in (sentence_piece, byte_level):
        rows = checkpoint.config["vocab_size"]
        decoder = {str(rows): {"content": "<image_soft_token>", "special": True}}
        checkpoint.change("tokenizer_config.json", added_tokens_decoder=decoder)
        report = verified(checkpoint)
        assert report.n_tokens == rows
        assert "<image_soft_token>" in report.limits[0]


def test_missing_end_of_turn_is_caught(byte_level: Checkpoint) -> None:
    """A template that ends turns with a token the engine does not stop at."""
    byte_level.change(
        "tokenizer_config.json", chat_template=CHATML.replace("<|im_end|>", "<|im_start|>")
    )
    with pytest.raises(IntegrityError, match="does not end a generation") as caught:
        verified(byte_level)
    assert "generation_config.json" in (caught.value.next_step or "")


def test_end_of_turn_of_its_own_name_is_written_as_eot(tmp_path: Path) -> None:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|over|>")
    template = CHATML.replace("<|im_end|>", "<|over|>")
    checkpoint = train_byte_level(tmp_path / "c", special=special, template=template)
    checkpoint.write("generation_config.json", {"eos_token_id": [2, 3]})
    report = verified(checkpoint)
    assert report.turn_end == "<|over|>"
    assert 3 in report.eog_ids


def test_too_many_ends_of_turn(tmp_path: Path) -> None:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|a|>", "<|b|>", "<|c|>")
    checkpoint = train_byte_level(tmp_path / "c", special=special)
    checkpoint.write("generation_config.json", {"eos_token_id": [2, 3, 4, 5]})
    with pytest.raises(InputError, match="roles eos, eot and eom are taken"):
        load_tokenizer(checkpoint.directory, checkpoint.config)


def test_other_template_in_the_file_is_caught(byte_level: Checkpoint) -> None:
    tokenizer = load_tokenizer(byte_level.directory, byte_level.config)
    path = byte_level.directory / "vocab.gguf"
    write_vocab_only(tokenizer, "llama", path)
    byte_level.change("tokenizer_config.json", chat_template=CHATML + " ")
    with pytest.raises(IntegrityError, match="chat template in the file is not"):
        verify_vocabulary(path, byte_level.directory, byte_level.config)


def test_other_vocabulary_in_the_file_is_caught(tmp_path: Path) -> None:
    small = train_byte_level(tmp_path / "small", vocab_size=300)
    large = train_byte_level(tmp_path / "large", vocab_size=330)
    path = tmp_path / "vocab.gguf"
    write_vocab_only(load_tokenizer(small.directory, small.config), "llama", path)
    with pytest.raises(IntegrityError):
        verify_vocabulary(path, large.directory, large.config)


def test_engine_refusal_says_why(byte_level: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    write_vocab_only(load_tokenizer(byte_level.directory, byte_level.config), "nonsense", path)
    with pytest.raises(EngineError, match=r"does not load broken\.gguf: \S"), open_vocab(path):
        pass


def test_a_vocabulary_that_would_abort_the_engine_is_refused(
    byte_level: Checkpoint, tmp_path: Path
) -> None:
    """Two tokens that are one in C, where a text ends at its first zero byte."""
    loaded = load_tokenizer(byte_level.directory, byte_level.config)
    tokens = list(loaded.vocabulary.tokens)
    tokens[3] = tokens[4] + "\0x"
    changed = replace(loaded, vocabulary=replace(loaded.vocabulary, tokens=tokens))
    write_vocab_only(changed, "llama", tmp_path / "vocab.gguf")
    with pytest.raises(UnsafeInputError, match="twice"), open_vocab(tmp_path / "vocab.gguf"):
        pass


def test_verification_is_silent(byte_level: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    verified(byte_level)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_control_tokens_cannot_be_typed(byte_level: Checkpoint) -> None:
    """Text of a user, tokenized without `parse_special`, never becomes a control token."""
    path = byte_level.directory / "vocab.gguf"
    write_vocab_only(load_tokenizer(byte_level.directory, byte_level.config), "llama", path)
    with open_vocab(path) as engine:
        assert engine.encode("<|im_end|>") == [2]
        assert not {0, 1, 2} & set(engine.encode("<|im_end|>", parse_special=False))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    checkpoint = train_byte_level(tmp_path_factory.mktemp("shared"))
    tokenizer = load_tokenizer(checkpoint.directory, checkpoint.config)
    write_vocab_only(tokenizer, "llama", checkpoint.directory / "vocab.gguf")
    return checkpoint


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(max_size=40), min_size=8, max_size=32))
def test_any_text_gives_the_checkpoint_s_ids_and_comes_back(
    shared: Checkpoint, texts: list[str]
) -> None:
    reference = load_reference(TokenizerFiles(shared.directory, shared.config))
    with open_vocab(shared.directory / "vocab.gguf") as engine:
        for text, expected in zip(texts, reference.encode_batch(texts), strict=True):
            assert engine.encode(text) == expected
            assert engine.decode(expected) == text.encode("utf-8")


def test_sample_shape_is_qwen2(byte_level: Checkpoint) -> None:
    """The embedded model's tokenizer: Qwen2's pattern, isolated, then bytes without a pattern."""
    steps = json.loads((byte_level.directory / "tokenizer.json").read_text())["pre_tokenizer"]
    assert [step["type"] for step in steps["pretokenizers"]] == ["Split", "ByteLevel"]
    assert load_tokenizer(byte_level.directory, byte_level.config).vocabulary.pre == "qwen2"
