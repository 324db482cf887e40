"""A loaded model's vocabulary: text to token ids and back."""

import ctypes
from typing import Any

from boardfit.edge.engines.vocabulary import EngineVocabulary, encode_text
from boardfit.edge.errors import InputError

_MAX_TEXT_BYTES = 2**31 - 1  # the C interface counts in int32


def tokenize(lib: Any, vocab: Any, text: str, *, special: bool, around: bool = False) -> list[int]:
    """Token ids of a text; `special` reads special tokens from it, `around` puts those of the model
    around it. Raises InputError for what is not Unicode, or longer than 2 GiB.
    """
    data = encode_text(text)
    if len(data) > _MAX_TEXT_BYTES:
        raise InputError(f"the text has {len(data)} bytes; the limit is {_MAX_TEXT_BYTES}")
    room = len(data) + 16
    while True:
        tokens = (lib.llama_token * room)()
        n = lib.llama_tokenize(vocab, data, len(data), tokens, room, around, special)
        if n >= 0:
            return list(tokens[:n])
        if -n <= room:
            raise InputError(f"the text of {len(data)} bytes cannot be tokenized")
        room = -n  # a normalizer may lengthen the text


class Vocab(EngineVocabulary):
    """Thin layer over llama_vocab; lives as long as its model. `template` is the model's."""

    def __init__(self, lib: Any, vocab: Any, template: str | None) -> None:
        self._lib = lib
        self._vocab = vocab
        self.template = template
        self._is_eog = lib.llama_vocab_is_eog
        self._to_piece = lib.llama_token_to_piece
        self._piece_buffer = ctypes.create_string_buffer(256)
        self.n_tokens = int(lib.llama_vocab_n_tokens(vocab))
        self.bos = int(lib.llama_vocab_bos(vocab))
        self.bos_text = self.written(self.bos)
        self.eos_text = self.written(int(lib.llama_vocab_eos(vocab)))
        ends = (int(lib.llama_vocab_eos(vocab)), int(lib.llama_vocab_eot(vocab)))
        self._end_tokens = tuple(sorted({token for token in ends if token >= 0}))
        self.add_bos = bool(lib.llama_vocab_get_add_bos(vocab)) and self.bos >= 0

    @property
    def end_tokens(self) -> tuple[int, ...]:
        return self._end_tokens

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Raises InputError for text longer than 2 GiB, too."""
        return tokenize(self._lib, self._vocab, text, special=special) if text else []

    def find_special(self, text: str) -> list[tuple[str, bool]]:
        lib = self._lib
        control = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        marked = control | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        found = []
        for token in set(self.tokenize(text, special=True)):
            kind = int(lib.llama_vocab_get_attr(self._vocab, token))
            if kind & marked:
                found.append((self.written(token), bool(kind & control)))
        return found

    def piece(self, token: int) -> bytes:
        n = self._to_piece(
            self._vocab, token, self._piece_buffer, len(self._piece_buffer), 0, False
        )
        if n < 0:
            self._piece_buffer = ctypes.create_string_buffer(-n)
            n = self._to_piece(self._vocab, token, self._piece_buffer, -n, 0, False)
        return self._piece_buffer.raw[:n]

    def is_eog(self, token: int) -> bool:
        return bool(self._is_eog(self._vocab, token))

    def written(self, token: int) -> str:
        if token < 0:
            return ""
        raw: bytes | None = self._lib.llama_vocab_get_text(self._vocab, token)
        return (raw or b"").decode("utf-8", "replace")
