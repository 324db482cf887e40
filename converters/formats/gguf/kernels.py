"""ggml's own quantizers, through ctypes from the library beside the `llama_cpp` package: same bytes
as `llama-quantize`. ctypes releases the interpreter's lock during a call, so that threads scale.
"""

import ctypes
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from boardfit.edge.errors import EngineError, EngineMissingError
from boardfit.edge.files.ggml_types import GGML_TYPES, row_bytes
from boardfit.edge.probe.ggml import bind, find_engine_folder, library_name
from boardfit.edge.requirements import install_line

_INTEGER_TYPES = ("I8", "I16", "I32", "I64")
_FLOAT_TYPES = ("F32", "F64")
_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _ToFloat),
        ("from_float_ref", ctypes.c_void_p),
    )


class GgmlKernels:
    """Conversions between rows of float32 and rows of any ggml type. Safe to call from threads."""

    def __init__(self, library: Path) -> None:
        pointer, count, kind = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        size, text = ctypes.c_size_t, ctypes.c_char_p
        try:
            lib = ctypes.CDLL(str(library))
            self._quantize = bind(
                lib,
                "ggml_quantize_chunk",
                size,
                kind,
                pointer,
                pointer,
                count,
                count,
                count,
                pointer,
            )
            self._validate = bind(lib, "ggml_validate_row_data", ctypes.c_bool, kind, pointer, size)
            self._prepare = bind(lib, "ggml_quantize_init", None, kind)
            self._find_traits = bind(lib, "ggml_get_type_traits", ctypes.POINTER(_TypeTraits), kind)
            self._widen = {
                "F16": bind(lib, "ggml_fp16_to_fp32_row", None, pointer, pointer, count),
                "BF16": bind(lib, "ggml_bf16_to_fp32_row", None, pointer, pointer, count),
            }
            parts = [bind(lib, f"ggml_{part}", text)().decode() for part in ("version", "commit")]
        except (OSError, AttributeError) as error:
            raise EngineError(
                f"the engine's library {library} cannot be used: {error}", next_step=_reinstall()
            ) from None
        self.version = "+".join(parts)
        self._check_layout()

    def _traits(self, type_name: str) -> Any:
        return self._find_traits(GGML_TYPES[type_name].id).contents

    def _check_layout(self) -> None:
        """A library with another type table would write unreadable files."""
        for name, entry in GGML_TYPES.items():
            if entry.id > GGML_TYPES["BF16"].id:
                continue  # an older library would be read beyond its table's end
            traits = self._traits(name)
            if (traits.blck_size, traits.type_size) != (entry.block_size, entry.type_size):
                raise EngineError(
                    f"the engine stores {name} as {traits.type_size} bytes per {traits.blck_size} "
                    f"values, expected {entry.type_size} per {entry.block_size}",
                    next_step=_reinstall(),
                )

    def prepare(self, types: Iterable[str]) -> None:
        """Build the tables that some types need, once, before threads start."""
        for name in types:
            self._prepare(GGML_TYPES[name].id)

    def can_dequantize(self, type_name: str) -> bool:
        """Whether values of this type can be read as floats; integers are only ever copied."""
        if type_name in _FLOAT_TYPES:
            return True
        return type_name not in _INTEGER_TYPES and bool(self._traits(type_name).to_float)

    def to_float(self, type_name: str, rows: np.ndarray, n: int, out: np.ndarray) -> np.ndarray:
        """`n` values of `rows` (C-contiguous, any ggml type) as float32.

        The result is `rows` itself where it is float32 already, else a view of `out`, a float32
        buffer of at least `n` values.
        """
        if type_name == "F32":
            return rows.reshape(-1).view(np.float32)
        if type_name == "F64":
            out[:n] = rows.reshape(-1).view(np.float64)
            return out[:n]
        widen = self._widen.get(type_name) or self._traits(type_name).to_float
        widen(rows.ctypes.data, out.ctypes.data, n)
        return out[:n]

    def quantize(
        self, type_name: str, values: np.ndarray, n_per_row: int, imatrix: np.ndarray | None
    ) -> np.ndarray:
        """Finite float32 `values` (whole rows, contiguous) in `type_name`, as uint8.

        `imatrix` holds `n_per_row` float32 weights, or is None.
        """
        n_rows = values.size // n_per_row
        out = np.empty(n_rows * row_bytes(type_name, n_per_row), np.uint8)
        weights = None if imatrix is None else imatrix.ctypes.data
        source, target = values.ctypes.data, out.ctypes.data
        kind = GGML_TYPES[type_name].id
        written = self._quantize(kind, source, target, 0, n_rows, n_per_row, weights)
        if written != out.nbytes:
            raise EngineError(f"ggml wrote {written} bytes of {type_name}, expected {out.nbytes}")
        return out

    def is_valid(self, type_name: str, data: np.ndarray) -> bool:
        """Whether rows of `type_name` (uint8) hold no NaN or infinity, in scales or in values."""
        mask = {"F16": 0x7C00, "BF16": 0x7F80}.get(type_name)
        if mask is not None:
            return not ((data.view(np.uint16) & mask) == mask).any()
        return bool(self._validate(GGML_TYPES[type_name].id, data.ctypes.data, data.nbytes))


@functools.cache
def load_kernels() -> GgmlKernels:
    """The engine's quantizers. Raises EngineMissingError, with the pip line, without an engine."""
    return GgmlKernels(library_path())


def library_path() -> Path:
    """ggml's base library in the installed engine. Raises EngineMissingError, with the pip line."""
    folder, name = find_engine_folder(), library_name("ggml-base")
    if folder is not None and (folder / name).is_file():
        return folder / name
    raise EngineMissingError(
        f"quantizing needs the engine llama-cpp-python, with {name}; it is not installed",
        next_step=install_line("llama", "llama-cpp-python"),
    )


def _reinstall() -> str:
    return f"{install_line('llama', 'llama-cpp-python')} --force-reinstall"
