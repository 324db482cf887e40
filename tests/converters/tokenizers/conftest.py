"""Tokenizers for the tests: trained in a second on the text below, or rebuilt from upstream's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from boardfit.converters.tokenizers.pretokenizer import PATTERNS
from tests.converters.tokenizers.rebuild import Rebuilt, rebuild, vocab_path

TEXT = """
Turn on the kitchen lights. Dim the bedroom lamp to 30 percent in ten minutes, please!
How warm is the board? It's 21.5 degrees; don't worry. Set a timer for 1,200 seconds.
def main():\n    for i in range(10):\n        print(i, "x" * i)\n\n\nWE'LL see what they've got.
Größe, naïve, Ελληνικά, Привет мир, こんにちは世界, 안녕하세요, नमस्ते, مرحبا, 🙂👍🏽.
"""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Checkpoint:
    """A directory with tokenizer files, and the config.json that goes with them."""

    directory: Path
    config: dict[str, Any]

    def read(self, name: str) -> dict[str, Any]:
        value = json.loads((self.directory / name).read_text(encoding="utf-8"))
        assert isinstance(value, dict)
        return value

    def write(self, name: str, value: Any) -> None:
        (self.directory / name).write_text(json.dumps(value), encoding="utf-8")

    def change(self, name: str, **entries: Any) -> None:
        self.write(name, {**self.read(name), **entries})


def train_byte_level(
    directory: Path,
    *,
    regex: str = PATTERNS["qwen2"],
    special: tuple[str, ...] = CHATML_TOKENS,
    template: str | None = CHATML,
    vocab_size: int = 400,
    normalizer: str | None = None,
) -> Checkpoint:
    """A fresh byte-level BPE tokenizer, as `tokenizers` saves it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = getattr(normalizers, normalizer)()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(regex), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in special],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 2, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    checkpoint = Checkpoint(
        directory, {"vocab_size": tokenizer.get_vocab_size(), "eos_token_id": 2}
    )
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    checkpoint.write("tokenizer_config.json", {**config, "chat_template": template})
    checkpoint.write("config.json", checkpoint.config)
    return checkpoint


def train_sentence_piece(
    directory: Path, *, dummy_prefix: bool = True, normalizes: bool = False
) -> Checkpoint:
    """A fresh SentencePiece BPE model with byte fallback, as Llama 2's was trained; with
    `normalizes`, text is normalized as the trainer does it by default.
    """
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 4),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc" if normalizes else "identity",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=normalizes,
        split_digits=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    config = {"vocab_size": 420, "bos_token_id": 1, "eos_token_id": 2}
    checkpoint = Checkpoint(directory, config)
    checkpoint.write(
        "tokenizer_config.json",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True},
    )
    checkpoint.write("config.json", checkpoint.config)
    return checkpoint


@pytest.fixture
def byte_level(tmp_path: Path) -> Checkpoint:
    return train_byte_level(tmp_path / "checkpoint")


@pytest.fixture
def sentence_piece(tmp_path: Path) -> Checkpoint:
    return train_sentence_piece(tmp_path / "pieces")


@pytest.fixture(scope="session")
def rebuilt(
    tmp_path_factory: pytest.TempPathFactory, llama_cpp_tree: Path
) -> Callable[[str], tuple[Checkpoint, Rebuilt]]:
    """`rebuilt(flavour)`: a checkpoint with a real vocabulary, made once a session."""
    made: dict[str, tuple[Checkpoint, Rebuilt]] = {}

    def make(flavour: str) -> tuple[Checkpoint, Rebuilt]:
        if flavour not in made:
            directory = tmp_path_factory.mktemp(flavour)
            result = rebuild(vocab_path(llama_cpp_tree, flavour), directory, flavour)
            config = {"vocab_size": result.n_vocab, "eos_token_id": result.eos_id}
            checkpoint = Checkpoint(directory, config)
            checkpoint.write("config.json", config)
            made[flavour] = (checkpoint, result)
        return made[flavour]

    return make
