"""LiteRT's C library, found in the wheel that ships it and called through ctypes.

Two wheels carry the same C interface (upstream: `litert/c/*.h`, here as of LiteRT 2.2):
litert-lm-api inside `liblitert-lm.so`, ai-edge-litert as `libLiteRt.so`. Both Python packages hide
what an engine needs: token ids and logits, or a way to cancel a run.
"""

import ctypes
import functools
import importlib.util
import platform
from pathlib import Path
from typing import Any

from boardfit.edge.engines.abort import NativeFlag
from boardfit.edge.errors import EngineError, EngineMissingError
from boardfit.edge.requirements import install_line

# Status codes (litert_common.h).
OK = 0
_STATUS_TEXTS = {
    1: "invalid argument", 2: "out of memory", 3: "failure at run time", 4: "missing input tensor",
    5: "not supported", 6: "not found", 8: "wrong version", 100: "cancelled", 500: "file error",
    501: "not a valid model file", 504: "the model does not compile",
}  # fmt: skip

# Element types (litert_model_types.h) by their names in numpy.
ELEMENT_TYPES = {
    1: "float32", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8",
    10: "float16", 16: "uint32", 17: "uint16",
}  # fmt: skip

HOST_MEMORY = 1  # kLiteRtTensorBufferTypeHostMemory
CPU = 1  # kLiteRtHwAcceleratorCpu

# Options of an environment (litert_environment_options.h) and the types of their values.
_AUTO_REGISTER_ACCELERATORS, _MIN_LOGGER_SEVERITY = 24, 25
_ANY_INT = 2
_SILENT = 4
_MAX_RANK = 8


class _Any(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("value", ctypes.c_int64))


class EnvOption(ctypes.Structure):
    """One option of an environment: what it is, and a tagged value."""

    _fields_ = (("tag", ctypes.c_int), ("value", _Any))


class Layout(ctypes.Structure):
    """Shape of a tensor; the rank is in the low seven bits of `bits`."""

    _fields_ = (
        ("bits", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * _MAX_RANK),
        ("strides", ctypes.c_uint32 * _MAX_RANK),
    )


class TensorType(ctypes.Structure):
    """Element type and shape of a tensor."""

    _fields_ = (("element_type", ctypes.c_int), ("layout", Layout))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.layout.dimensions[: self.layout.bits & 0x7F])


assert ctypes.sizeof(EnvOption) == 24 and ctypes.sizeof(TensorType) == 72  # as in the headers

_handle, _out, _index = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
_size_out, _text_out = ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_char_p)

_SIDES = ("Input", "Output")
_STATUS_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "LiteRtCreateEnvironment": (ctypes.c_int, ctypes.POINTER(EnvOption), _out),
    "LiteRtCreateModelFromBuffer": (_handle, ctypes.c_void_p, ctypes.c_size_t, _out),
    "LiteRtGetNumModelSignatures": (_handle, _size_out),
    "LiteRtGetModelSignature": (_handle, _index, _out),
    "LiteRtGetSignatureKey": (_handle, _text_out),
    **{f"LiteRtGetNumSignature{side}s": (_handle, _size_out) for side in _SIDES},
    **{f"LiteRtGetSignature{side}Name": (_handle, _index, _text_out) for side in _SIDES},
    **{f"LiteRtGetSignature{side}TensorByIndex": (_handle, _index, _out) for side in _SIDES},
    "LiteRtGetRankedTensorType": (_handle, ctypes.POINTER(TensorType)),
    "LiteRtCreateOptions": (_out,),
    "LiteRtSetOptionsHardwareAccelerators": (_handle, ctypes.c_int),
    "LiteRtCreateOpaqueOptions": (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, _out),
    "LiteRtAddOpaqueOptions": (_handle, _handle),
    "LiteRtCreateCompiledModel": (_handle, _handle, _handle, _out),
    "LiteRtSetCompiledModelCancellationFunction": (_handle, ctypes.c_void_p, ctypes.c_void_p),
    "LiteRtCreateManagedTensorBuffer": (
        _handle, ctypes.c_int, ctypes.POINTER(TensorType), ctypes.c_size_t, _out,
    ),
    "LiteRtGetTensorBufferHostMemory": (_handle, _out),
    "LiteRtRunCompiledModel": (_handle, _index, _index, _out, _index, _out),
}  # fmt: skip
_DESTROYERS = ("Environment", "Model", "Options", "CompiledModel", "TensorBuffer")

#: Package -> names of its library, by system.
LIBRARIES = {
    "litert_lm": ("liblitert-lm.so", "liblitert-lm.dylib", "litert-lm.dll"),
    "ai_edge_litert": ("libLiteRt.so", "libLiteRt.dylib", "libLiteRt.dll"),
}
DISTRIBUTIONS = {
    "litert_lm": "litert-lm-api",
    "ai_edge_litert": "ai-edge-litert",
    "tflite_runtime": "tflite-runtime",
}


def version(package: str) -> str:
    """Version of the installed distribution that `package` is from."""
    from importlib.metadata import version as installed

    return installed(DISTRIBUTIONS[package])


def check_cpu(machine: str | None = None, cpuinfo: str | None = None) -> None:
    """Raise EngineError on an Arm CPU without LSE atomics (Armv8.0: Raspberry Pi 3, 4, Zero 2 W),
    where loading litert-lm-api 0.18.1 ends the process (google-ai-edge/LiteRT-LM#1847). `cpuinfo`
    is the text of /proc/cpuinfo.
    """
    if (machine or platform.machine()) not in ("aarch64", "arm64"):
        return
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
        except OSError:
            return
    lines = [line for line in cpuinfo.splitlines() if line.lower().startswith("features")]
    features = {word for line in lines for word in line.partition(":")[2].split()}
    if features and "atomics" not in features:
        raise EngineError(
            "litert-lm-api does not run on this CPU: it is an Armv8.0 without LSE atomics "
            "('atomics' is not among its features), on which the library aborts the process",
            next_step="build for another engine: edge build MODEL --format gguf (llama_cpp) or "
            "tflite (ai-edge-litert runs here)",
        )


@functools.cache
def load_library(package: str) -> Any:
    """The typed C library inside `package`. Raises EngineMissingError if it does not load."""
    extra = "litert" if package == "litert_lm" else "tflite"
    line = install_line(extra, DISTRIBUTIONS[package])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EngineMissingError(f"{DISTRIBUTIONS[package]} is not installed", next_step=line)
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = next((folder / n for n in LIBRARIES[package] if (folder / n).is_file()), None)
    if path is None:
        raise EngineMissingError(
            f"{folder} has no {LIBRARIES[package][0]}", next_step=f"{line} --force-reinstall"
        )
    try:
        lib = ctypes.CDLL(str(path))
        for name, arguments in _STATUS_FUNCTIONS.items():
            function = getattr(lib, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        for name in _DESTROYERS:
            function = getattr(lib, f"LiteRtDestroy{name}")
            function.argtypes, function.restype = (ctypes.c_void_p,), None
    except (OSError, AttributeError) as error:
        raise EngineMissingError(
            f"{DISTRIBUTIONS[package]} {version(package)} is installed but its library does not "
            f"fit: {error}",
            next_step=f"{line} --force-reinstall",
        ) from error
    return lib


def status_text(status: int) -> str:
    """A status code in words."""
    return _STATUS_TEXTS.get(status, f"status {status}")


def try_create(lib: Any, name: str, *arguments: Any) -> tuple[int, ctypes.c_void_p]:
    """Call a function whose last argument receives a handle; returns its status and the handle."""
    handle = ctypes.c_void_p()
    status = int(getattr(lib, name)(*arguments, ctypes.byref(handle)))
    return status, handle


def create(lib: Any, name: str, *arguments: Any) -> ctypes.c_void_p:
    """`try_create`; raises EngineError unless the status is OK."""
    status, handle = try_create(lib, name, *arguments)
    if status != OK or not handle:
        raise EngineError(f"{name} failed: {status_text(status)}")
    return handle


def environment(lib: Any) -> ctypes.c_void_p:
    """A runtime of its own, CPU only (others would be searched for on disk), without a log."""
    options = (EnvOption * 2)(
        EnvOption(_AUTO_REGISTER_ACCELERATORS, _Any(_ANY_INT, CPU)),
        EnvOption(_MIN_LOGGER_SEVERITY, _Any(_ANY_INT, _SILENT)),
    )
    return create(lib, "LiteRtCreateEnvironment", len(options), options)


def cpu_options(lib: Any, n_threads: int, cache_path: Path | None) -> ctypes.c_void_p:
    """Options for the CPU: threads, and the file of packed weights (`litert_cpu_options.cc`)."""
    text = f"num_threads = {n_threads}\n"
    if cache_path is not None:
        quoted = str(cache_path).replace("\\", "\\\\").replace('"', '\\"')
        text += f'weight_cache_file_path = "{quoted}"\n'
    options = create(lib, "LiteRtCreateOptions")
    lib.LiteRtSetOptionsHardwareAccelerators(options, CPU)
    _add_options(lib, options, b"xnnpack", text)
    # Errors into a buffer: a run that is cancelled on purpose would be reported on stderr.
    _add_options(lib, options, b"runtime_options_string", "error_reporter_mode = 2\n")
    return options


def _add_options(lib: Any, options: ctypes.c_void_p, identifier: bytes, text: str) -> None:
    libc = _libc()
    payload = libc.strdup(text.encode())  # freed by the library through the destructor given
    free = ctypes.cast(libc.free, ctypes.c_void_p)
    opaque = create(lib, "LiteRtCreateOpaqueOptions", identifier, payload, free)
    lib.LiteRtAddOpaqueOptions(options, opaque)


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.strdup.argtypes, libc.strdup.restype = (ctypes.c_char_p,), ctypes.c_void_p
    return libc


def attach_cancel(lib: Any, compiled: ctypes.c_void_p, flag: NativeFlag) -> bool:
    """Have runs of `compiled` look at `flag`; False if the library does not want to."""
    function = ctypes.cast(flag.function, ctypes.c_void_p)
    status = lib.LiteRtSetCompiledModelCancellationFunction(compiled, flag.address, function)
    return bool(status == OK)
