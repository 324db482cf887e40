"""The engine's view of a vocabulary: a GGUF file loaded vocab-only through ctypes. The native
loader aborts on some malformed vocabularies, so every file is checked first.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from boardfit.edge.engines.llama.checks import check_vocabulary
from boardfit.edge.errors import EngineError, EngineMissingError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.gguf.purpose import ENCODERS
from boardfit.edge.requirements import install_line
from boardfit.edge.units import printable

_ERROR = 4  # ggml_log_level in ggml.h


class EngineVocab:
    """A loaded vocabulary. Use `open_vocab`, which frees it."""

    def __init__(self, api: ModuleType, model: Any) -> None:
        self._api, self._model = api, model
        self._vocab = api.llama_model_get_vocab(model)
        self.n_tokens: int = api.llama_vocab_n_tokens(self._vocab)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of text; `parse_special` recognises control tokens written out in it."""
        data = text.encode("utf-8", errors="surrogatepass")
        # One token a byte at most, and room for BOS, EOS and a space before the text.
        capacity = len(data) + 8
        buffer = (self._api.llama_token * capacity)()
        n = self._api.llama_tokenize(
            self._vocab, data, len(data), buffer, capacity, add_special, parse_special
        )
        if n < 0:
            raise EngineError(f"the engine needs {-n} tokens for a text of {len(data)} bytes")
        return list(buffer[:n])

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

    def metadata(self, key: str) -> str | None:
        """One scalar metadata value as text; None when the file does not have it."""
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = self._api.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if n < 0:
                return None
            if n < size:
                return buffer.value.decode("utf-8", "replace")
            size = n + 1


@contextmanager
def open_vocab(path: Path) -> Iterator[EngineVocab]:
    """Load `path` vocab-only: no tensor is touched, nothing is printed.

    Raises EngineMissingError without llama-cpp-python, UnsafeInputError for what would abort the
    engine, EngineError with the engine's own words when it refuses the file.
    """
    try:
        import llama_cpp
        from llama_cpp import _logger
    except ImportError:
        raise EngineMissingError(
            "verifying a vocabulary needs the engine, llama-cpp-python",
            next_step=install_line("llama"),
        ) from None
    header = read_header(path)
    check_vocabulary(path, header, embeds=header.arch in ENCODERS)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # or a failed assertion would start a debugger
    log_lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep_errors(level: int, text: bytes, _user_data: Any) -> None:
        if level == _ERROR:
            log_lines.append(text.decode("utf-8", "replace").strip())

    llama_cpp.llama_log_set(keep_errors, ctypes.c_void_p(0))
    try:
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        parameters.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            raise EngineError(
                f"the engine does not load {path.name}: {printable('; '.join(log_lines))}"
            )
        try:
            yield EngineVocab(llama_cpp, model)
        finally:
            llama_cpp.llama_model_free(model)
    finally:
        # The binding's own callback, so that others find the log as it was.
        llama_cpp.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))
