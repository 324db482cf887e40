"""tokenizer.model (SentencePiece BPE) → vocabulary.

Types, scores and the order in which added tokens override pieces follow upstream's
conversion/base.py (`_create_vocab_sentencepiece`), and conversion/phi.py for Phi-3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from boardfit.converters.tokenizers import reference
from boardfit.converters.tokenizers.bpe import SPACE_MARK
from boardfit.converters.tokenizers.files import AddedToken, TokenizerFiles
from boardfit.converters.tokenizers.vocabulary import (
    TokenType,
    Vocabulary,
    has_special_form,
    pad_text,
)
from boardfit.edge.errors import InputError
from boardfit.edge.units import printable

_ADDED_SCORE = -1000.0
_PAD_SCORE = -10000.0


def load_sentence_piece(files: TokenizerFiles, *, with_tokenizer_json: bool = False) -> Vocabulary:
    """The vocabulary of tokenizer.model, padded to the embedding's rows.

    `with_tokenizer_json` is Phi-3's way: added tokens of tokenizer.json count too, and only their
    `special` flag makes them control tokens.
    """
    processor = reference.sentence_piece(files)
    n_pieces = processor.vocab_size()
    added = list(_list_added(files, phi3=with_tokenizer_json))
    n_vocab = files.declared_vocab_size
    if n_vocab is None:
        n_vocab = max([n_pieces, *(token.id + 1 for token, _ in added)])
    tokens = [pad_text(i) for i in range(n_vocab)]
    scores = [_PAD_SCORE] * n_vocab
    types = [TokenType.UNUSED] * n_vocab
    if n_pieces > n_vocab:
        raise InputError(
            f"tokenizer.model has {n_pieces} pieces, but the embedding has only {n_vocab} rows",
            next_step="use the tokenizer.model that belongs to this checkpoint",
        )
    for token_id in range(n_pieces):
        tokens[token_id] = processor.IdToPiece(token_id)
        scores[token_id] = processor.GetScore(token_id)
        if processor.IsUnknown(token_id):
            types[token_id] = TokenType.UNKNOWN
        elif processor.IsControl(token_id):
            types[token_id] = TokenType.CONTROL
        elif processor.IsUnused(token_id):
            types[token_id] = TokenType.UNUSED
        elif processor.IsByte(token_id):
            types[token_id] = TokenType.BYTE
        else:
            types[token_id] = TokenType.NORMAL
    for token, kind in added:
        if files.is_spare(replace(token, special=kind is TokenType.CONTROL), n_vocab):
            continue
        if token.id >= n_vocab:
            raise InputError(
                f"added token {printable(token.content)!r} has id {token.id}, but the embedding "
                f"has only {n_vocab} rows",
                next_step="resize the model's embedding to the tokenizer, or use the tokenizer "
                "that belongs to this checkpoint",
            )
        tokens[token.id] = token.content
        scores[token.id] = _ADDED_SCORE
        types[token.id] = kind
    return Vocabulary("spm", "llama", "default", tokens, types, scores=scores)


def _list_added(files: TokenizerFiles, *, phi3: bool) -> Iterable[tuple[AddedToken, TokenType]]:
    """Added tokens in the order in which they override each other."""
    for text, token_id in files.legacy_added_tokens.items():
        yield AddedToken(token_id, text), TokenType.USER_DEFINED
    for token in files.config_added_tokens:
        if token.special or (not phi3 and has_special_form(token.content)):
            yield token, TokenType.CONTROL
        elif phi3:
            yield token, TokenType.USER_DEFINED
        else:
            text = token.content.replace(SPACE_MARK, " ")
            yield AddedToken(token.id, text), TokenType.USER_DEFINED
    if phi3:
        for token in files.json_added_tokens:
            kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
            yield token, kind
