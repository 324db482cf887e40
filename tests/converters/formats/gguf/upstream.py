"""Upstream's `llama_model_quantize`, the function behind `llama-quantize`, called in the engine."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from boardfit.converters.formats.gguf.imatrix import Imatrix
from boardfit.converters.formats.gguf.recipe import GgufRecipe


def quantize(source: Path, out: Path, recipe: GgufRecipe, imatrix: Imatrix | None = None) -> Path:
    """Quantize the GGUF `source` into `out` with upstream's own code, and name the imatrix in the
    metadata as the `llama-quantize` program does.
    """
    import llama_cpp.llama_cpp as lc

    lc.llama_log_set(_quiet(lc), None)
    params = lc.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = 2, recipe.file_type, True
    entries = []
    if imatrix is not None:
        for name, values in imatrix.entries.items():
            pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entries.append(lc.llama_model_imatrix_data(name.encode(), pointer, values.size))
        entries.append(lc.llama_model_imatrix_data(None, None, 0))
        array = (lc.llama_model_imatrix_data * len(entries))(*entries)
        params.imatrix = ctypes.cast(array, type(params.imatrix))
        overrides = _overrides(lc, imatrix)
        params.kv_overrides = ctypes.cast(overrides, type(params.kv_overrides))
    status = lc.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    assert status == 0, f"upstream refused to quantize {source} to {recipe.id}"
    return out


def _overrides(lc: Any, imatrix: Imatrix) -> Any:
    """`tools/quantize/quantize.cpp`, main: file, dataset, number of entries and of chunks."""
    array = (lc.llama_model_kv_override * 5)()
    for entry, (key, value) in zip(
        array,
        (
            ("quantize.imatrix.file", "made-up.gguf"),
            ("quantize.imatrix.dataset", imatrix.datasets[0]),
            ("quantize.imatrix.entries_count", len(imatrix.entries)),
            ("quantize.imatrix.chunks_count", imatrix.n_chunks),
        ),
        strict=False,  # the fifth is the terminator
    ):
        entry.key = key.encode()
        if isinstance(value, str):
            entry.tag, entry.value.val_str = lc.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
        else:
            entry.tag, entry.value.val_i64 = lc.LLAMA_KV_OVERRIDE_TYPE_INT, value
    return array


_callback: object = None


def _quiet(lc: Any) -> object:
    global _callback
    if _callback is None:
        _callback = lc.llama_log_callback(lambda level, text, data: None)
    return _callback
