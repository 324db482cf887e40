"""The checkpoint's own tokenizer, as the reference that a written vocabulary is held against, by
`tokenizers` or `sentencepiece`: no torch, no transformers, nothing unpickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from boardfit.converters.documents import has_file, read_bytes, read_text
from boardfit.converters.tokenizers.files import AddedToken, TokenizerFiles
from boardfit.edge.errors import InputError
from boardfit.edge.process.foreign import foreign_errors, held_back_stderr
from boardfit.edge.units import printable

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class ReferenceTokenizer:
    """The checkpoint's own tokenizer. `encode` and `encode_batch` recognise special tokens written
    in a text and add none. `encode_whole` adds those that the checkpoint puts around a text; it is
    None if its files do not name them. `added` are the tokens that are cut out first, `source`
    names the file.
    """

    encode: Callable[[str], list[int]]
    encode_batch: Callable[[Sequence[str]], list[list[int]]]
    encode_whole: Callable[[str], list[int]] | None
    decode: Callable[[Sequence[int]], str]
    added: tuple[AddedToken, ...]
    source: str


def hugging_face(files: TokenizerFiles) -> Tokenizer:
    """tokenizer.json in the `tokenizers` package, with the tokens that only tokenizer_config.json
    declares added the way transformers adds them.
    """
    import tokenizers

    path = files.directory / "tokenizer.json"
    with held_back_stderr(), _explain(f"{path} cannot be loaded"):
        text = read_text(path) if has_file(path) else json.dumps(files.tokenizer_json)
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        vocab = tokenizer.get_vocab(with_added_tokens=False)
        added = sorted(files.added_tokens(vocab).values(), key=lambda token: token.id)
        # All at once: each call builds the search for all of them anew.
        tokenizer.add_tokens(
            [
                tokenizers.AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=token.special,
                )
                for token in added
            ]
        )
    for token in added:
        if tokenizer.token_to_id(token.content) != token.id:
            raise InputError(
                f"added token {printable(token.content)!r} is declared with id {token.id}, but the "
                f"ids before it end so that it becomes {tokenizer.token_to_id(token.content)}",
                next_step="save the tokenizer again with transformers, so that no id is left out",
            )
    return tokenizer


def encode_ids(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """Ids of a text; `special` adds what the checkpoint puts around it. Raises InputError where the
    tokenizer fails on it.
    """
    with _explain("tokenizer.json fails on a text"):
        return list(tokenizer.encode(text, add_special_tokens=special).ids)


def decode_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, special tokens too. Raises like `encode_ids`."""
    with _explain("tokenizer.json fails to decode"):
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _explain(message: str) -> AbstractContextManager[None]:
    step = "download the checkpoint's tokenizer files again"
    return foreign_errors(message, next_step=step)


def sentence_piece(files: TokenizerFiles) -> SentencePieceProcessor:
    """tokenizer.model in the `sentencepiece` package."""
    from sentencepiece import SentencePieceProcessor

    path = files.sentencepiece_model
    if path is None:
        raise InputError(f"{files.directory} has no tokenizer.model")
    processor = SentencePieceProcessor()
    with _explain(f"{path} is not a SentencePiece model"):
        processor.LoadFromSerializedProto(read_bytes(path))
    return processor


def load_reference(files: TokenizerFiles) -> ReferenceTokenizer:
    """The checkpoint's tokenizer: tokenizer.json where it exists, else tokenizer.model."""
    if files.tokenizer_json:
        return _from_tokenizer_json(files)
    return _from_sentence_piece(files)


def _from_tokenizer_json(files: TokenizerFiles) -> ReferenceTokenizer:
    tokenizer = hugging_face(files)
    added = tuple(files.added_tokens(tokenizer.get_vocab(with_added_tokens=False)).values())

    def encode_batch(texts: Sequence[str]) -> list[list[int]]:
        with held_back_stderr(), _explain("tokenizer.json fails on a text"):
            return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    # Llama's and Gemma's tokenizer classes add BOS by a flag that tokenizer.json knows nothing of.
    post = json.dumps(files.tokenizer_json.get("post_processor"))
    by_flag = files.tokenizer_config.get("add_bos_token") and "TemplateProcessing" not in post
    whole = None if by_flag else partial(encode_ids, tokenizer, special=True)
    return ReferenceTokenizer(
        partial(encode_ids, tokenizer, special=False),
        encode_batch,
        whole,
        partial(decode_ids, tokenizer),
        added,
        "tokenizer.json",
    )


def _from_sentence_piece(files: TokenizerFiles) -> ReferenceTokenizer:
    processor = sentence_piece(files)
    pieces = {processor.IdToPiece(i): i for i in range(processor.vocab_size())}
    added = dict(files.added_tokens(pieces))
    for text, token_id in files.legacy_added_tokens.items():
        added.setdefault(token_id, AddedToken(token_id, text, special=False, normalized=False))
    by_text = {token.content: token.id for token in added.values()}
    for token_id in range(processor.vocab_size()):
        if processor.IsControl(token_id):
            by_text.setdefault(processor.IdToPiece(token_id), token_id)
    # Longest first, so that "<|end|>" is not cut out of "<|end|>x".
    cut = sorted(by_text, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, cut)) + ")") if cut else None

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for part in pattern.split(text) if pattern else [text]:
            if part in by_text:
                ids.append(by_text[part])
            elif part:
                ids += processor.EncodeAsIds(part)
        return ids

    def encode_batch(texts: Sequence[str]) -> list[list[int]]:
        return [encode(text) for text in texts]

    def decode(ids: Sequence[int]) -> str:
        return str(processor.DecodeIds(list(ids)))

    source = "tokenizer.model"
    return ReferenceTokenizer(encode, encode_batch, None, decode, tuple(added.values()), source)
