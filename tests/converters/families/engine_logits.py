"""Logits of a GGUF file from the engine itself, without a tokenizer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from boardfit.converters.families.decoder import DecoderFamily
from boardfit.converters.families.layout import to_f32


def write_without_vocabulary(path: Path, family: DecoderFamily) -> None:
    """A float32 GGUF with a family's metadata and tensors and a vocabulary of numbers only.

    Written with the `gguf` package, so that a fault in our own writer does not hide here.
    """
    writer = gguf.GGUFWriter(path, family.arch)
    entries = family.metadata()
    for entry in entries:
        item = entry.item_type if entry.value_type is GGUFValueType.ARRAY else None
        writer.add_key_value(entry.key, entry.value, entry.value_type, item)
    writer.add_tokenizer_model("no_vocab")
    if all(entry.key != f"{family.arch}.vocab_size" for entry in entries):
        writer.add_vocab_size(family.shape().n_vocab)
    for tensor in family.tensors():
        values = to_f32(tensor.read(0, tensor.n_rows), tensor.source_type)
        writer.add_tensor(
            tensor.name,
            np.ascontiguousarray(values).reshape(tensor.shape),
            raw_dtype=GGMLQuantizationType.F32,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def engine_logits(
    path: Path, tokens: Sequence[int], *, n_ctx: int, n_prefill: int | None = None
) -> np.ndarray:
    """Logits of all positions, float32 of shape (tokens, vocabulary), with a float32 KV cache.

    The first `n_prefill` tokens (None: all) are read at once, the rest one by one.
    """
    import llama_cpp

    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    assert model, f"the engine does not load {path.name}"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_ctx, n_ctx
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, "the engine makes no context"
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    starts = [0, *range(len(tokens) if n_prefill is None else n_prefill, len(tokens))]
    found = []
    try:
        for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
            for i, token in enumerate(tokens[start:stop]):
                batch.token[i], batch.pos[i] = token, start + i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
            batch.n_tokens = stop - start
            assert llama_cpp.llama_decode(context, batch) == 0
            flat = llama_cpp.llama_get_logits(context)
            found.append(np.ctypeslib.as_array(flat, (stop - start, n_vocab)).copy())
        return np.concatenate(found)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))
