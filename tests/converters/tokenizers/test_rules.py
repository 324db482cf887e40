"""The rules of reading a checkpoint's tokenizer, without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from boardfit.converters.tokenizers import corpus
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.loading import load_tokenizer
from boardfit.converters.tokenizers.pretokenizer import (
    PATTERNS,
    PRE_TYPES,
    canonical_regex,
    describe,
)
from boardfit.converters.tokenizers.special import read_special_tokens, template_metadata
from boardfit.converters.tokenizers.vocabulary import LoadedTokenizer, Vocabulary, write_vocab_only
from boardfit.edge.errors import InputError, UnsupportedModelError
from tests.converters.tokenizers.conftest import Checkpoint, train_byte_level
from tests.converters.tokenizers.flavours import is_equivalent


def values(tokenizer: LoadedTokenizer) -> dict[str, Any]:
    return {e.key.removeprefix("tokenizer.ggml."): e.value for e in tokenizer.metadata()}


# ---- refusals ---------------------------------------------------------------------------------


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer: looked for tokenizer\.json"):
        load_tokenizer(tmp_path, {"vocab_size": 10})


def test_json_only_families_want_tokenizer_json(sentence_piece: Checkpoint) -> None:
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(sentence_piece.directory, sentence_piece.config, arch="olmo2")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", '{"model": 3}'])
def test_broken_tokenizer_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError):
        load_tokenizer(tmp_path, {"vocab_size": 10})


HOSTILE_PARTS: dict[str, dict[str, Any]] = {
    "a normalizer that makes Rust panic": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "////////////"}
    },
    "an empty precompiled map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "a number for a list of steps": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 7}},
    "a number for a pattern": {"pre_tokenizer": {"type": "Split", "pattern": 7}},
    "a number among the added tokens": {"added_tokens": [7]},
    "a list of pairs as an added token": {"added_tokens": [[["id", 1]]]},
}


@pytest.mark.parametrize("case", HOSTILE_PARTS)
def test_hostile_parts_of_tokenizer_json_are_errors_of_ours(
    byte_level: Checkpoint, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = byte_level.directory / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **HOSTILE_PARTS[case]}))
    with pytest.raises(InputError):
        load_tokenizer(byte_level.directory, byte_level.config)
    assert "panicked" not in capfd.readouterr().err


def test_tokenizer_larger_than_the_embedding(byte_level: Checkpoint) -> None:
    byte_level.config["vocab_size"] -= 1
    with pytest.raises(InputError, match=r"has only \d+ rows"):
        load_tokenizer(byte_level.directory, byte_level.config)


def test_pieces_past_the_embedding(sentence_piece: Checkpoint) -> None:
    with pytest.raises(InputError, match="420 pieces, but the embedding has only 419 rows"):
        load_tokenizer(sentence_piece.directory, {**sentence_piece.config, "vocab_size": 419})


def test_added_token_past_the_embedding(sentence_piece: Checkpoint) -> None:
    decoder = {"420": {"content": "<|x|>", "special": True}}
    sentence_piece.change(
        "tokenizer_config.json", added_tokens_decoder=decoder, chat_template="<|x|>"
    )
    with pytest.raises(InputError, match=r"added token '<\|x\|>' has id 420"):
        load_tokenizer(sentence_piece.directory, sentence_piece.config)


def test_gap_in_the_added_ids(byte_level: Checkpoint) -> None:
    n = byte_level.config["vocab_size"]
    decoder = {str(n + 3): {"content": "<|late|>", "special": True}}
    byte_level.change("tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(InputError, match=f"declared with id {n + 3}"):
        load_tokenizer(byte_level.directory, {**byte_level.config, "vocab_size": n + 8})


def test_one_id_for_two_tokens(byte_level: Checkpoint) -> None:
    decoder = {"7": {"content": "<|seven|>", "special": True}}
    byte_level.change("tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(InputError, match="id 7 is claimed by two tokens"):
        load_tokenizer(byte_level.directory, byte_level.config)


def test_two_ids_for_one_token(byte_level: Checkpoint) -> None:
    decoder = {"9": {"content": "<|im_end|>", "special": True}}
    byte_level.change("tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(InputError, match=r"has id 2 in tokenizer\.json and id 9"):
        load_tokenizer(byte_level.directory, byte_level.config)


def test_no_end_of_sequence(byte_level: Checkpoint) -> None:
    byte_level.write("tokenizer_config.json", {"pad_token": "<|endoftext|>"})
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load_tokenizer(byte_level.directory, {"vocab_size": byte_level.config["vocab_size"]})


@pytest.mark.parametrize("eos", [-1, 10**6, "2", [2, 1.5]])
def test_impossible_eos(byte_level: Checkpoint, eos: Any) -> None:
    with pytest.raises(InputError, match="eos_token_id"):
        load_tokenizer(byte_level.directory, {**byte_level.config, "eos_token_id": eos})


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_other_kinds_of_model(byte_level: Checkpoint, kind: str) -> None:
    definition = byte_level.read("tokenizer.json")
    definition["model"]["type"] = kind
    byte_level.write("tokenizer.json", definition)
    with pytest.raises(UnsupportedModelError, match=kind):
        load_tokenizer(byte_level.directory, byte_level.config)


def test_template_of_a_wrong_kind(byte_level: Checkpoint) -> None:
    byte_level.change("tokenizer_config.json", chat_template={"default": "x"})
    with pytest.raises(InputError, match="chat template"):
        load_tokenizer(byte_level.directory, byte_level.config)


def test_tokenizer_model_that_is_none(sentence_piece: Checkpoint) -> None:
    (sentence_piece.directory / "tokenizer.model").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        load_tokenizer(sentence_piece.directory, sentence_piece.config)


def test_duplicate_texts_never_reach_the_engine() -> None:
    with pytest.raises(InputError, match="tokens 0 and 2 have the same text"):
        Vocabulary("bpe", "gpt2", "gpt-2", ["a", "b", "a"], [1, 1, 1], merges=["a b"])


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match="token 1 is not valid Unicode"):
        Vocabulary("bpe", "gpt2", "gpt-2", ["a", "\ud83d"], [1, 1], merges=["a b"])


# ---- special tokens ---------------------------------------------------------------------------


def template_processing(first: str | None, last: str | None) -> dict[str, Any]:
    def around(name: str) -> list[dict[str, Any]]:
        special = [{"SpecialToken": {"id": t, "type_id": 0}} if t else None for t in (first, last)]
        text = {"Sequence": {"id": name, "type_id": 0}}
        return [piece for piece in (special[0], text, special[1]) if piece]

    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A") + around("B"),
        "special_tokens": {
            t: {"id": t, "ids": [0], "tokens": [t]} for t in (first, last) if t is not None
        },
    }


def special_of(checkpoint: Checkpoint, processor: Any) -> Any:
    definition = checkpoint.read("tokenizer.json")
    checkpoint.write("tokenizer.json", {**definition, "post_processor": processor})
    files = TokenizerFiles(checkpoint.directory, checkpoint.config)
    return read_special_tokens(files, definition["model"]["vocab"])


def test_bos_from_the_post_processor(byte_level: Checkpoint) -> None:
    byte_level.change("tokenizer_config.json", bos_token="<|endoftext|>")
    special = special_of(byte_level, template_processing("<|endoftext|>", None))
    assert special.ids["bos"] == 0
    assert special.add["bos"] is True


def test_bos_written_as_an_object_counts_as_its_text(byte_level: Checkpoint) -> None:
    byte_level.change("tokenizer_config.json", bos_token={"content": "<|endoftext|>"})
    special = special_of(byte_level, template_processing("<|endoftext|>", None))
    assert special.add["bos"] is True


def test_end_of_text_that_is_not_eos_makes_eos_the_end_of_turn(byte_level: Checkpoint) -> None:
    special = special_of(byte_level, template_processing(None, "<|endoftext|>"))
    assert special.ids == {"eos": 0, "pad": 0, "eot": 2}
    assert special.add["eos"] is True


def test_byte_level_post_processor_adds_nothing(byte_level: Checkpoint) -> None:
    byte_level.change("tokenizer_config.json", add_bos_token=True)
    special = special_of(byte_level, {"type": "ByteLevel", "trim_offsets": False})
    assert special.add == {"bos": False, "eos": False}


def test_flags_of_the_config_without_a_post_processor(byte_level: Checkpoint) -> None:
    byte_level.change("tokenizer_config.json", add_bos_token=False, add_eos_token=True)
    assert special_of(byte_level, None).add == {"bos": False, "eos": True}


def test_ids_of_config_json_fill_what_the_texts_leave(byte_level: Checkpoint) -> None:
    byte_level.config.update(bos_token_id=0, eos_token_id=5)
    special = special_of(byte_level, None)
    assert special.ids["eos"] == 2, "the text wins over the id"
    assert special.ids["bos"] == 0


def test_bos_that_is_added_by_default_is_switched_off(tmp_path: Path) -> None:
    """Llama 3's pattern makes the engine add BOS; this checkpoint has none."""
    checkpoint = train_byte_level(tmp_path / "c", regex=PATTERNS["llama3"])
    definition = checkpoint.read("tokenizer.json")
    definition["model"]["ignore_merges"] = True
    checkpoint.write("tokenizer.json", definition)
    found = values(load_tokenizer(checkpoint.directory, checkpoint.config))
    assert found["pre"] == "llama-bpe"
    assert found["add_bos_token"] is False


def test_granite_and_gemma_extras(byte_level: Checkpoint, sentence_piece: Checkpoint) -> None:
    config = {**byte_level.config, "vocab_size": 49152}
    granite = load_tokenizer(byte_level.directory, config, arch="granite")
    assert granite.metadata()[-1].key == "tokenizer.ggml.add_bos_token"
    assert values(granite)["add_bos_token"] is False
    gemma = load_tokenizer(sentence_piece.directory, sentence_piece.config, arch="gemma2")
    assert values(gemma)["add_space_prefix"] is False
    assert gemma.metadata()[-1].key == "tokenizer.ggml.add_space_prefix"


def test_llama_writes_the_prefix_space_first(sentence_piece: Checkpoint) -> None:
    sentence_piece.change("tokenizer_config.json", add_prefix_space=True)
    tokenizer = load_tokenizer(sentence_piece.directory, sentence_piece.config, arch="llama")
    assert tokenizer.metadata()[0].key == "tokenizer.ggml.add_space_prefix"
    assert "add_space_prefix" not in values(
        load_tokenizer(sentence_piece.directory, sentence_piece.config, arch="qwen2")
    )


@pytest.mark.parametrize("place", ["config", "jinja", "json"])
def test_places_of_the_chat_template(byte_level: Checkpoint, place: str) -> None:
    config = byte_level.read("tokenizer_config.json")
    template = config.pop("chat_template")
    if place == "config":
        config["chat_template"] = template
        byte_level.write("chat_template.json", {"chat_template": "ignored"})
    elif place == "jinja":
        config["chat_template"] = "an older one"
        (byte_level.directory / "chat_template.jinja").write_text(template)
        byte_level.write("chat_template.json", {"chat_template": "ignored"})
    else:
        byte_level.write("chat_template.json", {"chat_template": template})
    byte_level.write("tokenizer_config.json", config)
    tokenizer = load_tokenizer(byte_level.directory, byte_level.config)
    assert {e.key: e.value for e in tokenizer.metadata()}["tokenizer.chat_template"] == template
    assert any("two chat templates" in note for note in tokenizer.notes) == (place == "jinja")


def test_several_templates() -> None:
    entries = template_metadata(
        [
            {"name": "tool use", "template": "T"},
            {"name": "default", "template": "D"},
            {"name": "rag", "template": "R"},
        ]
    )
    assert [(e.key.removeprefix("tokenizer."), e.value) for e in entries] == [
        ("chat_template.tool_use", "T"),
        ("chat_template.rag", "R"),
        ("chat_templates", ["rag", "tool_use"]),
        ("chat_template", "D"),
    ]


def test_merges_with_spaces_and_as_text(byte_level: Checkpoint) -> None:
    definition = byte_level.read("tokenizer.json")
    pairs = definition["model"]["merges"]
    definition["model"]["merges"] = [" ".join(pair) for pair in pairs]
    byte_level.write("tokenizer.json", definition)
    assert values(load_tokenizer(byte_level.directory, byte_level.config))["merges"] == [
        f"{a} {b}" for a, b in pairs
    ]


# ---- patterns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        r"'(?i:[sdmt]|ll|ve|re)",
    ],
)
def test_spellings_of_contractions(spelling: str) -> None:
    assert canonical_regex(
        PATTERNS["qwen2"].replace(PATTERNS["contractions"], spelling)
    ) == canonical_regex(PATTERNS["qwen2"])


@given(st.sampled_from([value for pre in PRE_TYPES for _, value in pre.steps]) | st.text())
def test_canonical_spelling_is_stable(regex: str) -> None:
    assert canonical_regex(canonical_regex(regex)) == canonical_regex(regex)


def test_different_patterns_stay_different() -> None:
    alike = {p.name for p in PRE_TYPES if is_equivalent(p.name, "qwen2")}
    assert alike == {"qwen2", "deepseek-r1-qwen", "stablelm2"}
    assert is_equivalent("smollm", "starcoder")
    assert not is_equivalent("llama-bpe", "qwen2")
    assert not is_equivalent("qwen2", "qwen35")


def test_unknown_step_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="'Whitespace'"):
        describe({"pre_tokenizer": {"type": "Whitespace"}})


# ---- file and corpus --------------------------------------------------------------------------


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        min_size=1,
        max_size=20,
        unique=True,
    )
)
def test_any_vocabulary_reads_back(tmp_path_factory: pytest.TempPathFactory, tokens: Any) -> None:
    scores = [float(-n) for n in range(len(tokens))]
    vocabulary = Vocabulary("spm", "llama", "default", tokens, [1] * len(tokens), scores=scores)
    path = tmp_path_factory.mktemp("v") / "v.gguf"
    write_vocab_only(LoadedTokenizer(vocabulary, special=()), "llama", path)
    fields = GGUFReader(path).fields
    assert fields["tokenizer.ggml.tokens"].contents() == tokens
    assert fields["tokenizer.ggml.scores"].contents() == scores
    assert [p.name for p in path.parent.iterdir()] == ["v.gguf"]


def test_corpus_is_large_fixed_and_text() -> None:
    texts = corpus.torture_corpus(["<|im_end|>"])
    assert len(texts) > 400
    assert len(set(texts)) == len(texts)
    assert texts == corpus.torture_corpus(["<|im_end|>"])
    assert "<|im_end|>Hello" in texts
    json.dumps(texts).encode()
