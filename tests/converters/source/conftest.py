"""Checkpoints with a tokenizer, small enough to be copied and broken in every test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.converters.families.cases_llama import llama
from tests.converters.families.checkpoints import decoder_shapes, write_checkpoint

SAMPLE = Path(__file__).parents[3] / "converters" / "sample" / "model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A two-layer Llama in three shards, with the sample model's tokenizer and a model card."""
    n_vocab = json.loads((SAMPLE / "config.json").read_text())["vocab_size"]
    config = llama(vocab_size=n_vocab, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    directory = tmp_path / "tiny-model"
    write_checkpoint(directory, config, decoder_shapes(config), n_shards=3)
    for name in TOKENIZER_FILES:
        shutil.copy(SAMPLE / name, directory / name)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    return directory
