"""Tokenizers of checkpoints → GGUF metadata.

    tokenizer = load(directory, config, prefer=family.arch)
    tokenizer.metadata()                      # tokenizer.* entries in upstream's order
    write_vocab_only(tokenizer, arch, path)   # boardfit.converters.tokenizers.vocab_file
    verify_vocabulary(path, directory)        # boardfit.converters.tokenizers.verify

A vocabulary is verified by what it does: the engine's ids against the checkpoint's own tokenizer
on a torture corpus, before the hours of quantizing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from boardfit.converters.spec import KeyValue


@runtime_checkable
class Tokenizer(Protocol):
    """What a checkpoint's tokenizer becomes."""

    @property
    def kind(self) -> Literal["bpe", "spm"]:
        """The engine's algorithm: merges by rank over bytes, or by score over pieces."""

    @property
    def n_tokens(self) -> int:
        """Rows of the vocabulary, padding included."""

    def metadata(self) -> list[KeyValue]:
        """All `tokenizer.*` entries, in writing order."""


def load(directory: Path, config: Mapping[str, Any], prefer: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint directory.

    `prefer` is the GGUF architecture (`llama`, `qwen2`, `gemma3`, `phi3`, …), whose rules decide
    which file is read first and what is written besides; None follows the common rules. Raises
    InputError for files that are absent, malformed or at odds with the embedding's rows, and
    UnsupportedModelError for a kind of tokenizer that the engine does not have.
    """
    from boardfit.converters.tokenizers.loading import load_tokenizer

    return load_tokenizer(directory, config, prefer)
