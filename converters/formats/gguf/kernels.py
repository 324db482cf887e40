"""ggml's own quantizers, through ctypes from the library beside the `llama_cpp` package: same bytes
as `llama-quantize`. ctypes releases the interpreter's lock during a call, so that threads scale.
"""

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from boardfit.edge.errors import EngineError, EngineMissingError
from boardfit.edge.files.ggml_types import GGML_TYPES, row_bytes
from boardfit.edge.requirements import install_line

_INTEGER_TYPES = ("I8", "I16", "I32", "I64")
_FLOAT_TYPES = ("F32", "F64")
_LIBRARY = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}.get(
    sys.platform, "libggml-base.so"
)

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
        try:
            lib = ctypes.CDLL(str(library))
            pointer, count = ctypes.c_void_p, ctypes.c_int64
            lib.ggml_quantize_chunk.argtypes = [
                ctypes.c_int, pointer, pointer, count, count, count, pointer,
            ]  # fmt: skip
            lib.ggml_quantize_chunk.restype = ctypes.c_size_t
            lib.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
            lib.ggml_validate_row_data.restype = ctypes.c_bool
            lib.ggml_quantize_init.argtypes = [ctypes.c_int]
            lib.ggml_quantize_init.restype = None
            lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
            lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
            for name in ("ggml_fp16_to_fp32_row", "ggml_bf16_to_fp32_row"):
                getattr(lib, name).argtypes = [pointer, pointer, count]
                getattr(lib, name).restype = None
            lib.ggml_commit.restype = ctypes.c_char_p
            lib.ggml_version.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise EngineError(
                f"the engine's library {library} cannot be used: {error}",
                next_step=f"{install_line('llama', 'llama-cpp-python')} --force-reinstall",
            ) from None
        self._lib = lib
        self.version = f"{lib.ggml_version().decode()}+{lib.ggml_commit().decode()}"
        self._check_layout()

    def _check_layout(self) -> None:
        """A library with another type table would write unreadable files."""
        for name, entry in GGML_TYPES.items():
            if entry.id > GGML_TYPES["BF16"].id:
                continue  # an older library would be read beyond its table's end
            traits = self._lib.ggml_get_type_traits(entry.id).contents
            if (traits.blck_size, traits.type_size) != (entry.block_size, entry.type_size):
                raise EngineError(
                    f"the engine stores {name} as {traits.type_size} bytes per {traits.blck_size} "
                    f"values, expected {entry.type_size} per {entry.block_size}",
                    next_step=f"{install_line('llama', 'llama-cpp-python')} --force-reinstall",
                )

    def prepare(self, types: Iterable[str]) -> None:
        """Build the tables that some types need, once, before threads start."""
        for name in types:
            self._lib.ggml_quantize_init(GGML_TYPES[name].id)

    def can_dequantize(self, type_name: str) -> bool:
        """Whether values of this type can be read as floats; integers are only ever copied."""
        if type_name in _FLOAT_TYPES:
            return True
        traits = self._lib.ggml_get_type_traits(GGML_TYPES[type_name].id).contents
        return type_name not in _INTEGER_TYPES and bool(traits.to_float)

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
        source, target = rows.ctypes.data, out.ctypes.data
        if type_name == "F16":
            self._lib.ggml_fp16_to_fp32_row(source, target, n)
        elif type_name == "BF16":
            self._lib.ggml_bf16_to_fp32_row(source, target, n)
        else:
            traits = self._lib.ggml_get_type_traits(GGML_TYPES[type_name].id).contents
            traits.to_float(source, target, n)
        return out[:n]

    def quantize(
        self, type_name: str, values: np.ndarray, n_per_row: int, imatrix: np.ndarray | None
    ) -> np.ndarray:
        """Finite float32 `values` (whole rows, contiguous) in `type_name`, as uint8.

        `imatrix` holds `n_per_row` float32 weights, or is None.
        """
        n_rows = values.size // n_per_row
        out = np.empty(n_rows * row_bytes(type_name, n_per_row), np.uint8)
        written = self._lib.ggml_quantize_chunk(
            GGML_TYPES[type_name].id,
            values.ctypes.data,
            out.ctypes.data,
            0,
            n_rows,
            n_per_row,
            None if imatrix is None else imatrix.ctypes.data,
        )
        if written != out.nbytes:
            raise EngineError(f"ggml wrote {written} bytes of {type_name}, expected {out.nbytes}")
        return out

    def is_valid(self, type_name: str, data: np.ndarray) -> bool:
        """Whether rows of `type_name` (uint8) hold no NaN or infinity, in scales or in values."""
        mask = {"F16": 0x7C00, "BF16": 0x7F80}.get(type_name)
        if mask is not None:
            return not ((data.view(np.uint16) & mask) == mask).any()
        return bool(
            self._lib.ggml_validate_row_data(
                GGML_TYPES[type_name].id, data.ctypes.data, data.nbytes
            )
        )


@functools.cache
def load_kernels() -> GgmlKernels:
    """The engine's quantizers. Raises EngineMissingError, with the pip line, without an engine."""
    return GgmlKernels(library_path())


def library_path() -> Path:
    """ggml's base library in the installed engine. Raises EngineMissingError, with the pip line."""
    spec = importlib.util.find_spec("llama_cpp")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        library = Path(folder) / "lib" / _LIBRARY
        if library.is_file():
            return library
    found = f"llama_cpp is installed, but without {_LIBRARY}" if spec else "it is not installed"
    raise EngineMissingError(
        f"quantizing needs the engine llama-cpp-python: {found}",
        next_step=install_line("llama", "llama-cpp-python"),
    )
