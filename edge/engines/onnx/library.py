"""onnxruntime-genai's C library, found in the wheel that ships it and called through ctypes.

The Python package holds the interpreter's lock while a graph runs, so that another thread could not
stop it. It also copies more than is needed. Its C interface (`src/ort_genai_c.h` of
onnxruntime-genai, here as of 0.18) does neither.
"""

import ctypes
import functools
import importlib.util
import os
import re
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from boardfit.edge.errors import EngineError, EngineMissingError, UnsupportedModelError
from boardfit.edge.requirements import install_line
from boardfit.edge.units import printable

PACKAGE = "onnxruntime_genai"
EXTRA = "onnx"
_NAMES = {"win32": "onnxruntime-genai.dll", "darwin": "libonnxruntime-genai.dylib"}
_RUNTIMES = {"win32": "onnxruntime.dll", "darwin": "libonnxruntime*.dylib"}

_P, _S, _OUT = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)
# Name: argument types. All of these return an OgaResult*, null where all went well.
_CALLS: dict[str, tuple[Any, ...]] = {
    "OgaCreateConfig": (_S, _OUT),
    "OgaConfigOverlay": (_P, _S),
    "OgaCreateModelFromConfig": (_P, _OUT),
    "OgaCreateGeneratorParams": (_P, _OUT),
    "OgaGeneratorParamsSetSearchNumber": (_P, _S, ctypes.c_double),
    "OgaGeneratorParamsSetSearchBool": (_P, _S, ctypes.c_bool),
    "OgaCreateGenerator": (_P, _P, _OUT),
    "OgaGenerator_AppendTokens": (_P, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t),
    "OgaGenerator_RewindTo": (_P, ctypes.c_size_t),
    "OgaGenerator_SetRuntimeOption": (_P, _S, _S),
    "OgaGenerator_GetLogits": (_P, _OUT),
    "OgaTensorGetData": (_P, _OUT),
    "OgaSetLogBool": (_S, ctypes.c_bool),
}
_DESTROYERS = ("Config", "Model", "GeneratorParams", "Generator", "Tensor", "Result")


@functools.cache
def load_library() -> Any:
    """The library, quiet and without telemetry. Raises EngineMissingError if a package or its
    library is absent, EngineError if it is too old.
    """
    home, runtime = _folder(PACKAGE), _folder("onnxruntime")
    library = home / _NAMES.get(sys.platform, "libonnxruntime-genai.so")
    pattern = _RUNTIMES.get(sys.platform, "libonnxruntime.so*")
    found = sorted((runtime / "capi").glob(pattern))
    # Looked for here: the library ends the process when it does not find the runtime.
    if not library.is_file() or not found:
        raise EngineMissingError(
            f"onnxruntime-genai is installed without {library.name if found else pattern}",
            next_step=f"{install_line(EXTRA)} --force-reinstall --no-cache-dir",
        )
    os.environ["ORT_LIB_PATH"] = str(found[0])
    try:
        ctypes.CDLL(str(found[0]))
        lib = ctypes.CDLL(str(library))
        for name, arguments in _CALLS.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = arguments, ctypes.c_void_p
        for kind in _DESTROYERS:
            function = getattr(lib, f"OgaDestroy{kind}")
            function.argtypes, function.restype = (_P,), None
        lib.OgaResultGetError.argtypes, lib.OgaResultGetError.restype = (_P,), ctypes.c_char_p
    except OSError as error:
        raise EngineMissingError(
            f"onnxruntime-genai is installed but its library does not load: {error}",
            next_step=f"{install_line(EXTRA)} --force-reinstall --no-cache-dir",
        ) from error
    except AttributeError as error:
        raise EngineError(
            f"the installed onnxruntime-genai {version()} does not suit boardfit: {error}",
            next_step=f"{install_line(EXTRA)} -U",
        ) from None
    if set_telemetry := getattr(lib, "OgaSetTelemetryEnabled", None):
        set_telemetry.argtypes, set_telemetry.restype = (ctypes.c_bool,), None
        set_telemetry(False)
    check(lib, lib.OgaSetLogBool(b"enabled", False))
    return lib


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EngineMissingError(f"{package} is not installed", next_step=install_line(EXTRA))
    return Path(next(iter(spec.submodule_search_locations)))


def version() -> str:
    """`0.18.0`, of the installed onnxruntime-genai."""
    return _installed("onnxruntime-genai")


def runtime_version() -> str:
    """`1.31.1`, of the onnxruntime below it."""
    return _installed("onnxruntime")


def _installed(distribution: str) -> str:
    try:
        return installed(distribution)
    except PackageNotFoundError:
        return "unknown"


class GenaiError(EngineError):
    """What the library says; turned into one of ours by who knows what was tried."""


def check(lib: Any, result: int | None) -> None:
    """Raise GenaiError with the library's words if a call failed."""
    if not result:
        return
    words = (lib.OgaResultGetError(result) or b"").decode("utf-8", "replace")
    lib.OgaDestroyResult(result)
    raise GenaiError(words)


def load_error(name: str, words: str) -> UnsupportedModelError | EngineError:
    """What went wrong when the library refused a model, from its own words."""
    runtime = f"onnxruntime {runtime_version()}"
    words = printable(" ".join(words.split()), 400)
    unknown = re.search(r"([\w.]+)\((-?\d+)\) is not a registered function/op", words)
    opset = re.search(r"Opset (\d+) is under development|support for domain ([\w.]+) is", words)
    if unknown:
        return UnsupportedModelError(
            f"{name}: {runtime} has no operator {unknown[1]} (version {unknown[2]})",
            next_step="install a newer onnxruntime, or build the model again with this boardfit",
        )
    if opset:
        return UnsupportedModelError(f"{name}: newer than {runtime}: {words}")
    return EngineError(f"{name}: onnxruntime-genai does not load it: {words}")
