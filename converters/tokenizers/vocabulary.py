"""A vocabulary from any source: texts, types, scores, merges; its GGUF form, and a GGUF file of it
alone, so that it can be verified in seconds before hours of quantizing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from gguf import GGUFValueType, Keys

from boardfit.converters.gguf_packing import pack_header, pack_metadata
from boardfit.converters.spec import KeyValue
from boardfit.converters.tokenizers.files import MAX_TOKEN_CHARACTERS
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.units import printable

Kind = Literal["bpe", "spm"]


class TokenType(IntEnum):
    """GGUF's token types, same values as llama.cpp's `llama_token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. `model` is `tokenizer.ggml.model` and decides the engine's algorithm; `pre` is
    the pre-tokenizer's name. `scores` is None for byte-level BPE, `merges` None for SentencePiece.
    """

    kind: Kind
    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] | None = None
    merges: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_tokens(self.tokens)

    def metadata(self) -> list[KeyValue]:
        """Entries in upstream's order: model, pre, tokens, scores, types, merges."""
        keys, kinds = Keys.Tokenizer, GGUFValueType
        entries = [KeyValue(keys.MODEL, self.model, kinds.STRING)]
        if self.pre:
            entries.append(KeyValue(keys.PRE, self.pre, kinds.STRING))
        types = [int(t) for t in self.types]
        lists: list[tuple[str, Sequence[Any] | None, GGUFValueType]] = [
            (keys.LIST, self.tokens, kinds.STRING),
            (keys.SCORES, self.scores, kinds.FLOAT32),
            (keys.TOKEN_TYPE, types, kinds.INT32),
            (keys.MERGES, self.merges or None, kinds.STRING),
        ]
        return entries + [
            KeyValue(key, list(values), kinds.ARRAY, kind)
            for key, values, kind in lists
            if values is not None
        ]


@dataclass(frozen=True)
class LoadedTokenizer:
    """A vocabulary with its special tokens: what a checkpoint's tokenizer becomes. `notes` are
    sentences about what of the checkpoint's is not in it.
    """

    vocabulary: Vocabulary
    special: Sequence[KeyValue]
    leading: Sequence[KeyValue] = field(default=())
    notes: Sequence[str] = ()

    @property
    def kind(self) -> Kind:
        return self.vocabulary.kind

    @property
    def n_tokens(self) -> int:
        return len(self.vocabulary.tokens)

    def metadata(self) -> list[KeyValue]:
        """All `tokenizer.*` entries, in writing order. A later entry for a key replaces the value
        and keeps the place, as upstream's writer does.
        """
        entries = {}
        for entry in (*self.leading, *self.vocabulary.metadata(), *self.special):
            entries[entry.key] = entry
        return list(entries.values())


def write_vocab_only(
    tokenizer: LoadedTokenizer, arch: str, path: Path, *, name: str = "vocab"
) -> None:
    """Write a GGUF without tensors. `name` becomes `general.name`: the engine trims whitespace
    after special tokens for models whose name contains "phi-3".
    """
    identity = [
        KeyValue("general.architecture", arch, GGUFValueType.STRING),
        KeyValue("general.name", name, GGUFValueType.STRING),
    ]
    write_vocab_entries([*identity, *tokenizer.metadata()], path)


def write_vocab_entries(metadata: Iterable[KeyValue], path: Path) -> None:
    """Write the entries of a `ModelSpec.metadata` that make up its vocabulary: architecture, name
    and `tokenizer.*`. The file is written beside, synced and renamed.
    """
    names = ("general.architecture", "general.name")
    entries = [e for e in metadata if e.key.startswith("tokenizer.") or e.key in names]
    write_atomic(path, pack_header(len(entries), pack_metadata(entries), 0, b""))


def check_tokens(tokens: Sequence[str]) -> None:
    """Raise InputError for what the engine aborts on or GGUF cannot hold: two ids with one text,
    and text that is not Unicode. Raise UnsafeInputError for a text that is longer than any token.
    """
    if not tokens:
        raise InputError("the tokenizer has no tokens")
    seen: dict[str, int] = {}
    for token_id, text in enumerate(tokens):
        if len(text) > MAX_TOKEN_CHARACTERS:
            raise UnsafeInputError(
                f"token {token_id} has {len(text)} characters; one has at most "
                f"{MAX_TOKEN_CHARACTERS}",
                next_step="use the tokenizer files that belong to this checkpoint",
            )
        # An empty text is stored as is; the engine renames it to this.
        text = text or f"[EMPTY_{token_id}]"
        other = seen.setdefault(text, token_id)
        if other != token_id:
            raise InputError(
                f"tokens {other} and {token_id} have the same text {printable(text)!r}; the engine "
                "needs one id per text",
                next_step="remove one of them from the tokenizer's files",
            )
    try:
        "".join(tokens).encode("utf-8")
    except UnicodeEncodeError:
        bad = next(i for i, t in enumerate(tokens) if not _is_unicode(t))
        raise InputError(f"the text of token {bad} is not valid Unicode") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def pad_text(token_id: int) -> str:
    """Text of an id that no token claims, as upstream writes it."""
    return f"[PAD{token_id}]"


def has_special_form(text: str) -> bool:
    """Whether a token looks special that a checkpoint forgot to mark (upstream: conversion/base.py,
    `does_token_look_special`). Such a token is never shown to a user.
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
