"""Repositories with tekken.json alone: ids by rank, held against a merge written out here."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers

from boardfit.converters.tokenizers.corpus import torture_corpus
from boardfit.converters.tokenizers.files import TokenizerFiles
from boardfit.converters.tokenizers.loading import load_tokenizer
from boardfit.converters.tokenizers.pretokenizer import PATTERNS
from boardfit.converters.tokenizers.reference import load_reference
from boardfit.converters.tokenizers.verify import verify_vocabulary
from boardfit.converters.tokenizers.vocabulary import write_vocab_only
from boardfit.edge.errors import InputError
from boardfit.edge.template.render import render
from tests.converters.tokenizers.conftest import TEXT, Checkpoint

N_SPECIAL, N_INNER = 24, 400
V7 = "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]Hello</s>[INST]Bye[/INST]"
V3 = "<s>[INST]Hi[/INST]Hello</s>[INST]Be brief.\n\nBye[/INST]"


def split(text: str) -> list[str]:
    pattern = pre_tokenizers.Split(Regex(PATTERNS["tekken"]), "isolated")
    return [piece for piece, _ in pattern.pre_tokenize_str(text)]


def merge(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """tiktoken's rule: a whole token, else the pair of the lowest rank again and again."""
    parts = [piece] if piece in ranks else [bytes([byte]) for byte in piece]
    while True:
        pairs = [
            (ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))
        ]
        rank, i = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def learn() -> list[bytes]:
    """Tokens by rank: the bytes, then the most frequent pairs of the text."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    pieces = [piece.encode() for piece in split(TEXT)]
    while len(ranks) < N_INNER:
        counts: dict[bytes, int] = {}
        for parts in (merge(piece, ranks) for piece in pieces if piece not in ranks):
            for a, b in itertools.pairwise(parts):
                counts[a + b] = counts.get(a + b, 0) + 1
        assert counts, f"the text yields {len(ranks)} tokens only"
        best = sorted(counts, key=lambda token: (-counts[token], token))[:20]
        for token in best:
            ranks.setdefault(token, len(ranks))
    return list(ranks)[:N_INNER]


@pytest.fixture(scope="module")
def tokens() -> list[bytes]:
    return learn()


def document(tokens: list[bytes], version: str = "v7") -> dict[str, Any]:
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for i, token in enumerate(tokens)
    ]
    return {
        "config": {
            "pattern": PATTERNS["tekken"],
            "num_vocab_tokens": N_INNER,
            "default_vocab_size": N_SPECIAL + N_INNER - 10,
            "default_num_special_tokens": N_SPECIAL,
            "version": version,
        },
        "vocab": vocab,
        "special_tokens": [
            {"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(special)
        ],
    }


def write(directory: Path, tekken: dict[str, Any]) -> Checkpoint:
    directory.mkdir(exist_ok=True)
    config = {"vocab_size": N_SPECIAL + N_INNER - 10, "eos_token_id": 2}
    made = Checkpoint(directory, config)
    made.write("config.json", config)
    made.write("tekken.json", tekken)
    return made


def test_ids_are_those_of_merging_by_rank(tokens: list[bytes], tmp_path: Path) -> None:
    made = write(tmp_path, document(tokens))
    reference = load_reference(TokenizerFiles(made.directory, made.config))
    kept = {token: rank for rank, token in enumerate(tokens[:-10])}
    for text in [TEXT, *torture_corpus(n_random=40)]:
        expected = [
            N_SPECIAL + kept[part] for piece in split(text) for part in merge(piece.encode(), kept)
        ]
        assert reference.encode(text) == expected, text
    assert reference.encode("[INST]a</s>") == [3, N_SPECIAL + ord("a"), 2]
    assert reference.encode_whole is not None
    assert reference.encode_whole("a") == [1, N_SPECIAL + ord("a")]


@pytest.mark.engine
@pytest.mark.parametrize("arch", ["llama", "mistral3"])
def test_the_engine_gives_the_same_ids(arch: str, tokens: list[bytes], tmp_path: Path) -> None:
    made = write(tmp_path, document(tokens))
    tokenizer = load_tokenizer(made.directory, made.config, arch)
    assert tokenizer.n_tokens == made.config["vocab_size"]
    write_vocab_only(tokenizer, arch, tmp_path / "vocab.gguf")
    report = verify_vocabulary(tmp_path / "vocab.gguf", made.directory, made.config)
    assert (report.pre, report.turn_end) == ("tekken", "</s>")


@pytest.mark.parametrize(("version", "expected"), [("v3", V3), ("v7", V7), ("v13", V7)])
def test_a_conversation_is_written_as_the_version_does(
    version: str, expected: str, tokens: list[bytes], tmp_path: Path
) -> None:
    made = write(tmp_path, document(tokens, version))
    template = TokenizerFiles(made.directory, made.config).chat_template()
    assert isinstance(template, str)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert render(template, messages, bos_token="<s>", eos_token="</s>") == expected


def test_a_template_of_the_repository_comes_first(tokens: list[bytes], tmp_path: Path) -> None:
    made = write(tmp_path, document(tokens))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}own")
    files = TokenizerFiles(made.directory, made.config)
    assert (files.chat_template(), files.notes()) == ("{{ bos_token }}own", [])


def test_the_first_version_lists_no_special_tokens(tokens: list[bytes], tmp_path: Path) -> None:
    tekken = document(tokens, "v3")
    del tekken["special_tokens"]
    made = write(tmp_path, tekken)
    special = load_tokenizer(made.directory, made.config, "llama", pre="tekken").metadata()
    entries = {entry.key: entry.value for entry in special}
    assert entries["tokenizer.ggml.tokens"][9:12] == ["[TOOL_CALLS]", "[IMG]", "<pad>"]
    assert entries["tokenizer.ggml.tokens"][20] == "<SPECIAL_20>"
    ids = [entries[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "padding")]
    assert ids == [1, 2, 11]


Damage = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.pop("config"), "config.pattern"),
        (lambda t: t["config"].update(default_vocab_size=10**9), "default_vocab_size"),
        (lambda t: t["config"].update(default_vocab_size=True), "default_vocab_size"),
        (lambda t: t["config"].update(default_num_special_tokens=0), "num_special_tokens"),
        (lambda t: t["config"].update(default_num_special_tokens=5), "rank below 5"),
        (lambda t: t.update(vocab=t["vocab"][:300]), "vocab holds 300 tokens"),
        (lambda t: t.update(vocab={}), "vocab holds 0 tokens"),
        (lambda t: t["vocab"][300].update(rank=7), "expected rank 300"),
        (lambda t: t["vocab"][300].update(token_bytes="?"), "expected rank 300"),
        (lambda t: t["vocab"].__setitem__(9, None), "expected rank 9"),
        (lambda t: t["vocab"][300].update(token_bytes="YQ=="), "a token twice"),
        (lambda t: t["vocab"][0].update(token_bytes="YWFhYQ=="), "256 bytes"),
        (lambda t: t["special_tokens"][0].update(rank="0"), "special_tokens holds"),
        (lambda t: t["special_tokens"][0].update(token_str="<s>"), "a text twice"),
        (lambda t: t["special_tokens"][0].update(token_str="a"), "repeats the special token"),
        (lambda t: t.update(special_tokens=5), "special_tokens holds"),
    ],
)
def test_a_damaged_file_is_refused(
    damage: Damage, words: str, tokens: list[bytes], tmp_path: Path
) -> None:
    tekken = document(tokens)
    damage(tekken)
    made = write(tmp_path, json.loads(json.dumps(tekken)))
    with pytest.raises(InputError, match=words):
        load_tokenizer(made.directory, made.config, "llama")
