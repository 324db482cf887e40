"""Read a tokenizer.json with a BPE model: byte-level (GPT-2, Llama 3, Qwen, …), or over
SentencePiece pieces with byte fallback (fast Llama 2, Mistral, Gemma tokenizers); and a
tokenizer.model (SentencePiece BPE).

Which tokens are control, user-defined or padding follows upstream's conversion/base.py
(`get_vocab_base`, `_create_vocab_sentencepiece`) and gguf-py/gguf/vocab.py (`LlamaHfVocab`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from boardfit.converters.documents import has_file, read_text
from boardfit.converters.tokenizers import reference
from boardfit.converters.tokenizers.files import AddedToken, TokenizerFiles
from boardfit.converters.tokenizers.vocabulary import (
    TokenType,
    Vocabulary,
    has_special_form,
    pad_text,
)
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.units import printable

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SHOWN = frozenset(load_toml("boardfit.converters.tokenizers", "known.toml")["shown"])
# U+2581, which SentencePiece writes for a space.
SPACE_MARK = "▁"
# A space inside a merge would read as the separator; GPT-2's byte map writes it as this.
_ENCODED_SPACE = chr(ord(" ") + 256)


def base_vocab(files: TokenizerFiles) -> dict[str, int]:
    """`model.vocab` of tokenizer.json, text → id. Raises InputError when it is not that."""
    kind = files.model.get("type") or ("BPE" if "merges" in files.model else None)
    if kind != "BPE":
        raise UnsupportedModelError(
            f"tokenizer.json holds a {printable(str(kind))} model; BPE is what this part converts",
            next_step="put the checkpoint's tokenizer.model beside it, or come in through a GGUF",
        )
    vocab = files.model.get("vocab")
    if not isinstance(vocab, dict) or not all(
        type(token_id) is int and token_id >= 0 for token_id in vocab.values()
    ):
        raise InputError("tokenizer.json: model.vocab is not a map from text to ids")
    if len(set(vocab.values())) != len(vocab):
        raise InputError("tokenizer.json: model.vocab gives one id to two tokens")
    return vocab


def merge_lines(files: TokenizerFiles) -> list[str]:
    """`model.merges` as GGUF lines `left right`, from either way in which they are written; from
    merges.txt where tokenizer.json has none.
    """
    merges = files.model.get("merges") or []
    if not merges:
        return _read_merges_txt(files)
    lines = []
    for number, merge in enumerate(merges):
        if isinstance(merge, str):
            pair = merge.split(" ")
        else:
            pair = [str(part).replace(" ", _ENCODED_SPACE) for part in merge]
        if len(pair) != 2 or not all(pair):
            raise InputError(
                f"tokenizer.json: merge {number} is {printable(str(merge))}, expected two parts"
            )
        lines.append(f"{pair[0]} {pair[1]}")
    return lines


def load_byte_level(files: TokenizerFiles, pre: str) -> Vocabulary:
    """The vocabulary of a byte-level BPE tokenizer.json, padded to the embedding's rows."""
    vocab = base_vocab(files)
    added = files.added_tokens(vocab)
    encoder = reference.hugging_face(files)
    texts, n_vocab = _rows(files, vocab, added)
    tokens, types = [], []
    for token_id in range(n_vocab):
        text, token, kind = texts.get(token_id), added.get(token_id), TokenType.NORMAL
        if text is None:
            text, kind = pad_text(token_id), TokenType.UNUSED
        elif token is not None:
            if not token.normalized:
                # The engine looks for the text as it reads after normalizing and decoding.
                ids = reference.encode_ids(encoder, text, special=False)
                decoded = reference.decode_ids(encoder, ids)
                # Decoding reads a lone "ø" as half a character; several would become one text.
                text = text if "\ufffd" in decoded else decoded
            text, kind = _added(text, token.special)
        tokens.append(text)
        types.append(kind)
    merges = merge_lines(files)
    if not merges:
        raise InputError("tokenizer.json has no merges", next_step="add merges.txt beside it")
    return Vocabulary("bpe", "gpt2", pre, tokens, types, merges=merges)


def load_byte_fallback(files: TokenizerFiles, *, keeps_merges: bool = False) -> Vocabulary:
    """The vocabulary of a SentencePiece-style BPE tokenizer.json.

    With `keeps_merges`, as for Gemma 4, the engine reads the merges. Else it merges by score, and
    scores are minus the rank of the token that a merge yields, which is what SentencePiece itself
    stores. (Upstream writes -1000 for all, and the engine then splits differently.)
    """
    vocab = base_vocab(files)
    added = files.added_tokens(vocab)
    texts, n_vocab = _rows(files, vocab, added)
    merges = merge_lines(files)
    scores_by_text = _scores(vocab, merges)
    tokens, types, scores = [], [], []
    unknown = files.model.get("unk_token")
    for token_id in range(n_vocab):
        text = texts.get(token_id)
        token = added.get(token_id)
        score = -1000.0
        if text is None:
            text, kind = pad_text(token_id), TokenType.UNUSED
        elif _BYTE_TOKEN.fullmatch(text):
            kind, score = TokenType.BYTE, 0.0
        elif token is None:
            kind, score = TokenType.NORMAL, scores_by_text[text]
        elif text == unknown and not keeps_merges:
            kind, score = TokenType.UNKNOWN, 0.0
        elif keeps_merges and text in _SHOWN:
            kind = TokenType.USER_DEFINED
        else:
            text, kind = _added(text, token.special)
        tokens.append(text)
        types.append(kind)
        scores.append(score)
    if keeps_merges:
        no_scores = [-1000.0] * n_vocab
        return Vocabulary("bpe", "gemma4", "", tokens, types, scores=no_scores, merges=merges)
    return Vocabulary("spm", "llama", "default", tokens, types, scores=scores)


def _added(text: str, is_special: bool) -> tuple[str, TokenType]:
    """An added token as the engine takes it: a control token, or text with plain spaces."""
    if is_special or has_special_form(text):
        return text, TokenType.CONTROL
    return text.replace(SPACE_MARK, " "), TokenType.USER_DEFINED


def is_byte_fallback(files: TokenizerFiles) -> bool:
    """Whether tokenizer.json holds SentencePiece-style BPE (`byte_fallback`), not byte-level."""
    return bool(files.model.get("byte_fallback", False))


def _rows(
    files: TokenizerFiles, vocab: Mapping[str, int], added: Mapping[int, AddedToken]
) -> tuple[dict[int, str], int]:
    """Texts by id, and how many ids there are: the embedding's rows, if config.json has them."""
    texts = {token_id: text for text, token_id in vocab.items()}
    texts.update((token_id, token.content) for token_id, token in added.items())
    n_vocab = files.declared_vocab_size
    if n_vocab is not None:
        for token in added.values():
            if files.is_spare(token, n_vocab):
                del texts[token.id]
    highest = max(texts, default=-1)
    if n_vocab is None:
        if len(texts) != highest + 1:
            raise InputError(
                f"token ids run to {highest}, but only {len(texts)} of them exist, and config.json "
                "has no vocab_size, the embedding's number of tokens",
                next_step="add vocab_size to config.json",
            )
        return texts, highest + 1
    if highest >= n_vocab:
        raise InputError(
            f"the tokenizer has token {printable(texts[highest])!r} with id {highest}, but the "
            f"embedding has only {n_vocab} rows",
            next_step="resize the model's embedding to the tokenizer, or use the tokenizer that "
            "belongs to this checkpoint",
        )
    return texts, n_vocab


def _scores(vocab: Mapping[str, int], merges: Sequence[str]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for line in merges:
        scores.setdefault(line.replace(" ", ""), -float(len(scores)))
    for text in sorted(vocab, key=vocab.__getitem__):
        scores.setdefault(text, -float(len(scores)))
    return scores


def _read_merges_txt(files: TokenizerFiles) -> list[str]:
    path = files.directory / "merges.txt"
    if not has_file(path):
        return []
    lines = read_text(path).splitlines()
    if lines and lines[0].startswith("#"):
        lines = lines[1:]
    return [line for line in map(str.strip, lines) if len(line.split()) == 2]


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
    checks = {
        TokenType.UNKNOWN: processor.IsUnknown,
        TokenType.CONTROL: processor.IsControl,
        TokenType.UNUSED: processor.IsUnused,
        TokenType.BYTE: processor.IsByte,
    }
    for token_id in range(n_pieces):
        tokens[token_id] = processor.IdToPiece(token_id)
        scores[token_id] = processor.GetScore(token_id)
        found = (kind for kind, is_it in checks.items() if is_it(token_id))
        types[token_id] = next(found, TokenType.NORMAL)
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
    if phi3:
        for token in (*files.config_added_tokens, *files.json_added_tokens):
            yield token, TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        return
    for token in files.config_added_tokens:
        text, kind = _added(token.content, token.special)
        yield replace(token, content=text), kind
