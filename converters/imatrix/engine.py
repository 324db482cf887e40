"""The engine as the collector needs it: a context that reports every node of its graph."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boardfit.edge.disk.opened_file import OpenedFile
from boardfit.edge.errors import EngineError, EngineMissingError
from boardfit.edge.requirements import install_line

_UBATCH = 512  # upstream's


def load_engine() -> Any:
    """The low-level interface. Raises EngineMissingError, with the pip line, without it."""
    try:
        import llama_cpp.llama_cpp as llama
    except ImportError as error:
        raise EngineMissingError(
            f"computing an imatrix needs the engine llama-cpp-python: {error}",
            next_step=install_line("llama", "llama-cpp-python"),
        ) from None
    return llama


@functools.cache
def _silence(llama: Any) -> Any:
    """Return a log callback that prints nothing. Cached, because the engine keeps the pointer."""
    return llama.llama_log_callback(lambda _level, _text, _data: None)


@contextmanager
def open_context(
    llama: Any, path: OpenedFile, n_ctx: int, threads: int | None, callback: Any
) -> Iterator[Any]:
    """A context that calls back for every node; all of it is freed on the way out."""
    llama.llama_log_set(_silence(llama), None)
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        raise EngineError(f"the engine cannot load {path}")
    try:
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(_UBATCH, n_ctx)
        params.n_threads = params.n_threads_batch = threads or os.cpu_count() or 1
        params.cb_eval = callback
        context = llama.llama_init_from_model(model, params)
        if not context:
            raise EngineError(f"the engine cannot open {path} with a context of {n_ctx}")
        try:
            yield context
        finally:
            llama.llama_free(context)
    finally:
        llama.llama_model_free(model)


def tokenize(llama: Any, context: Any, content: str) -> tuple[list[int], int | None]:
    """Tokens of the whole text, and the one that every chunk begins with if the model has it."""
    vocab = llama.llama_model_get_vocab(llama.llama_get_model(context))
    data = content.encode()
    capacity = len(data) + 16
    for _ in range(2):  # a negative answer is the number of tokens that need room
        tokens = (llama.llama_token * capacity)()
        n = llama.llama_tokenize(vocab, data, len(data), tokens, capacity, True, False)
        if n >= 0:
            break
        capacity = -n
    else:
        raise EngineError(f"the engine could not tokenize the text ({n})")
    bos = llama.llama_vocab_bos(vocab) if llama.llama_vocab_get_add_bos(vocab) else None
    return list(tokens[:n]), bos


def decode(llama: Any, context: Any, tokens: list[int]) -> None:
    """One chunk from an empty cache. Outputs are asked for everywhere: where none are, the engine
    drops rows in the last layer and their activations would be missed.
    """
    llama.llama_memory_clear(llama.llama_get_memory(context), True)
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = True
        status = llama.llama_decode(context, batch)
    finally:
        llama.llama_batch_free(batch)
    if status != 0:
        raise EngineError(f"the engine could not evaluate a chunk of text (status {status})")
