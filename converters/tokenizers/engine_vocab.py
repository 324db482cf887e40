"""The engine's view of a vocabulary: a GGUF file loaded vocab-only through ctypes. The native
loader aborts on some malformed vocabularies, so every file is checked first.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boardfit.edge.engines.llama.checks import check_vocabulary
from boardfit.edge.engines.llama.library import load_library, log_tail, silence
from boardfit.edge.engines.llama.vocab import tokenize
from boardfit.edge.errors import EngineError
from boardfit.edge.files.gguf import GgufHeader, read_header
from boardfit.edge.files.gguf.purpose import ENCODERS
from boardfit.edge.units import printable


class EngineVocab:
    """A loaded vocabulary, and the header of its file. Use `open_vocab`, which frees it."""

    def __init__(self, api: Any, model: Any, header: GgufHeader) -> None:
        self._api, self.header = api, header
        self._vocab = api.llama_model_get_vocab(model)
        self.n_tokens: int = api.llama_vocab_n_tokens(self._vocab)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of text; `parse_special` recognises control tokens written out in it."""
        return tokenize(self._api, self._vocab, text, special=parse_special, around=add_special)

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for, control tokens written out."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self._api.llama_token_to_piece(self._vocab, token_id, buffer, size, 0, True)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for, piece by piece, as a stream prints them."""
        return b"".join(map(self.piece, ids))

    def is_eog(self, token_id: int) -> bool:
        return bool(self._api.llama_vocab_is_eog(self._vocab, token_id))

    def eog_ids(self) -> list[int]:
        return [i for i in range(self.n_tokens) if self.is_eog(i)]

    def is_special(self, token_id: int) -> bool:
        """Whether the token is cut out of a text before splitting: control or user-defined."""
        attributes = self._api.llama_vocab_get_attr(self._vocab, token_id)
        wanted = self._api.LLAMA_TOKEN_ATTR_CONTROL | self._api.LLAMA_TOKEN_ATTR_USER_DEFINED
        return bool(attributes & wanted)

    def token_text(self, token_id: int) -> str:
        return str(self._api.llama_vocab_get_text(self._vocab, token_id).decode("utf-8", "replace"))


@contextmanager
def open_vocab(path: Path) -> Iterator[EngineVocab]:
    """Load `path` vocab-only: no tensor is touched, nothing is printed.

    Raises EngineMissingError without llama-cpp-python, UnsafeInputError for what would abort the
    engine, EngineError with the engine's own words when it refuses the file.
    """
    api, header = load_library(), read_header(path)
    check_vocabulary(path, header, embeds=header.arch in ENCODERS)
    silence(api)
    parameters = api.llama_model_default_params()
    parameters.vocab_only, parameters.n_gpu_layers = True, 0
    model = api.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        words = printable("; ".join(log_tail().splitlines()))
        raise EngineError(f"the engine does not load {path.name}: {words}")
    try:
        yield EngineVocab(api, model, header)
    finally:
        api.llama_model_free(model)
