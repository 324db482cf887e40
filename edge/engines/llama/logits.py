"""Whole distributions out of llama.cpp: logits after every token of a text, for quality cards."""

import ctypes
from collections.abc import Sequence
from typing import Any

from boardfit.edge.engines.abort import NativeFlag
from boardfit.edge.engines.base import LogitRows
from boardfit.edge.engines.llama import library
from boardfit.edge.engines.llama.context import ABORTED, OK, attach_abort, make_context
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.errors import EngineError

# Logits of this many tokens exist at once in the library, in addition to the returned array.
_OUTPUT_BYTES = 64 << 20


def decode_all(lib: Any, handle: Any, batch: Any, chunk: Sequence[int], start: int) -> None:
    """Evaluate `chunk`, from position `start`, with outputs for all. Raises EngineError."""
    batch.n_tokens = len(chunk)
    for i, token in enumerate(chunk):
        batch.token[i], batch.pos[i] = token, start + i
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
    code = int(lib.llama_decode(handle, batch))
    if code == ABORTED:
        raise EngineError("the engine was closed before its logits were known")
    if code != OK:
        raise library.engine_error(f"llama.cpp failed (code {code}) on {len(chunk)} tokens")


def read_logits(
    lib: Any,
    model: Any,
    name: str,
    tokens: Sequence[int],
    settings: EngineSettings,
    abort: NativeFlag,
    found: LogitRows,
) -> None:
    """Compute logits in a context of their own on the loaded `model`. Raises EngineError if the
    library fails or `abort` is set meanwhile.
    """
    import numpy as np

    n_vocab = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
    step = max(1, min(settings.n_ubatch, _OUTPUT_BYTES // (4 * n_vocab), len(tokens)))
    settings = settings.replace(n_batch=step, n_ubatch=step)
    handle = make_context(lib, model, name, len(tokens), settings, n_outputs=step)
    batch = lib.llama_batch_init(step, 0, 1)
    try:
        attach_abort(lib, handle, abort)
        for start in range(0, len(tokens), step):
            chunk = tokens[start : start + step]
            decode_all(lib, handle, batch, chunk, start)
            rows = ctypes.cast(lib.llama_get_logits(handle), ctypes.POINTER(ctypes.c_float))
            shape = (len(chunk), n_vocab)
            found.add(np.ctypeslib.as_array(rows, shape))
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(handle)
