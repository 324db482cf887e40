"""Vectors out of llama.cpp: one per text, pooled as the model's file states, of length one."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

from boardfit.device_profiles.cost.memory import embedding_bytes, embedding_rows
from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.engines.abort import NativeFlag, StopWatcher
from boardfit.edge.engines.llama import library
from boardfit.edge.engines.llama.context import attach_abort, load_model, make_context
from boardfit.edge.engines.llama.estimate import estimate_bytes, most_heads
from boardfit.edge.engines.llama.logits import decode_all
from boardfit.edge.engines.llama.ready import check_file, check_memory
from boardfit.edge.engines.llama.vocab import tokenize
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import EngineError, InputError, UnsupportedModelError
from boardfit.edge.files.gguf import GgufHeader, read_header
from boardfit.edge.files.gguf.purpose import ENCODERS, require_embedder
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.types import EngineInfo

_EMBEDDINGS = "token_embd.weight"
#: Tokens of a text where nothing else is asked for.
DEFAULT_N_CTX = 512
# Every sixth layer of EmbeddingGemma sees the whole text; the library assumes that one does.
_GEMMA_PERIOD = 6


class LlamaEmbedder:
    """An open embedding model. Not for two threads at once."""

    engine = "llama_cpp"
    has_template = False  # no conversation is had with it

    def __init__(
        self, lib: Any, model: Any, path: OpenedFile, settings: EngineSettings, *, n_ctx: int,
        pooling: str, at_once: bool,
    ) -> None:  # fmt: skip
        self._lib, self._model, self._name = lib, model, path.name
        self.n_ctx, self.pooling, self._kv_type = n_ctx, pooling, settings.kv_type
        self._vocab = lib.llama_model_get_vocab(model)
        self.n_embd = int(lib.llama_model_n_embd_out(model))
        n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self._step = embedding_rows(n_vocab, n_ctx, settings.n_ubatch, at_once=at_once)
        settings = settings.replace(n_batch=self._step, n_ubatch=self._step)
        self._handle = make_context(
            lib, model, path.name, n_ctx, settings, n_outputs=self._step, embeds=True
        )
        self._batch = lib.llama_batch_init(self._step, 0, 1)
        self._abort = NativeFlag()
        attach_abort(lib, self._handle, self._abort)

    @classmethod
    def open(
        cls, path: OpenedFile, settings: EngineSettings, *, progress: Progress | None = None
    ) -> LlamaEmbedder:
        """As `open_engine`; UnsupportedModelError for a file that is no embedding model."""
        header = read_header(path)
        pooling = require_embedder(header, path)
        n_layer = header.integer(f"{header.arch}.block_count") or 0
        if header.arch == "gemma-embedding" and n_layer < _GEMMA_PERIOD:
            raise UnsupportedModelError(
                f"{path}: {n_layer} layers, none of which sees a whole text; the engine aborts "
                f"with less than {_GEMMA_PERIOD}"
            )
        settings = check_file(path, header, settings, embeds=True)
        n_ctx = choose_n_ctx(header, settings)
        # A text goes through at once, unless the vector is the last token's and all look back.
        at_once = header.arch in ENCODERS or pooling != "last"
        if at_once and settings.n_ubatch != n_ctx:
            settings = settings.replace(n_ubatch=n_ctx)
        if settings.need_bytes is None:
            n_vocab = next((t.dims[1] for t in header.tensors if t.name == _EMBEDDINGS), 0)
            rows = embedding_rows(n_vocab, n_ctx, settings.n_ubatch, at_once=at_once)
            own = embedding_bytes(n_vocab, most_heads(path, header), n_ctx, rows)
            need = estimate_bytes(path, header, n_ctx, settings) + own
            settings = settings.replace(need_bytes=need)
        settings = check_memory(path, header, settings, n_ctx)
        lib = library.load_library()
        library.silence(lib)
        model = load_model(lib, path, settings, progress)
        try:
            return cls(lib, model, path, settings, n_ctx=n_ctx, pooling=pooling, at_once=at_once)
        except BaseException:
            lib.llama_model_free(model)
            raise

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model wants around it."""
        return tokenize(self._lib, self._vocab, text, special=False, around=True)

    def embed(self, text: str, stop: Callable[[], bool] | None = None) -> tuple[list[float], int]:
        """The vector of a text, and its number of tokens. Raises InputError for too few or many,
        EngineError where `stop` ends it.
        """
        tokens = self.tokenize(text)
        if not tokens or not text.strip():
            raise InputError("the text is empty", next_step="give a text to make a vector of")
        if len(tokens) > self.n_ctx:
            raise InputError(
                f"the text has {len(tokens)} tokens, and {self._name} reads {self.n_ctx} at most",
                next_step="divide it, or build the model with a larger --ctx",
            )
        lib, batch = self._lib, self._batch
        if memory := lib.llama_get_memory(self._handle):
            lib.llama_memory_clear(memory, True)
        self._abort.clear()
        with StopWatcher(stop, self._abort.set):
            for start in range(0, len(tokens), self._step):
                chunk = tokens[start : start + self._step]
                decode_all(lib, self._handle, batch, chunk, start)
        found = lib.llama_get_embeddings_seq(self._handle, 0)
        if not found:
            raise EngineError(f"{self._name}: llama.cpp gave no vector")
        rows = ctypes.cast(found, ctypes.POINTER(ctypes.c_float))
        return normalize(list(rows[: self.n_embd]), self._name), len(tokens)

    def describe(self) -> EngineInfo:
        """What makes the vectors."""
        lib = self._lib
        return EngineInfo(
            name=self.engine,
            version=library.version(),
            build="",
            n_ctx=self.n_ctx,
            n_threads=int(lib.llama_n_threads(self._handle)),
            n_batch=self._step,
            kv_type=self._kv_type,
            quant=lib.llama_ftype_name(lib.llama_model_ftype(self._model)).decode(),
        )

    def to_record(self) -> dict[str, Any]:
        """What makes the vectors, for records."""
        info = self.describe()
        return {"name": info.name, "version": info.version, "n_ctx": info.n_ctx,
                "quant": info.quant}  # fmt: skip

    def close(self) -> None:
        if self._model is not None:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._handle)
            self._lib.llama_model_free(self._model)
            self._model = self._handle = None


def normalize(vector: list[float], name: str) -> list[float]:
    """The vector at length one. Raises EngineError for one that has no direction."""
    length = math.sqrt(math.fsum(value * value for value in vector))
    if not math.isfinite(length) or not length:
        raise EngineError(f"{name}: a vector of length {length:g} came out")
    return [value / length for value in vector]


def choose_n_ctx(header: GgufHeader, settings: EngineSettings) -> int:
    """The longest text, in tokens: what is asked for, within what the model was trained for."""
    trained = header.integer(f"{header.arch}.context_length") or DEFAULT_N_CTX
    return min(settings.n_ctx or DEFAULT_N_CTX, trained)
