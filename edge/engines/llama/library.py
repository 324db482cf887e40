"""The llama.cpp shared library as llama-cpp-python ships it: bindings, log, a native abort flag.

Only `llama_cpp.llama_cpp`, the file of ctypes declarations, is taken. The package's `__init__`
would add numpy, jinja2, a disk cache and more: 30 MiB and 0.3 s that a board need not spend.
Taking the declarations from the installed package keeps the structs those of the library beside it.
"""

import ctypes
import functools
import importlib
import importlib.util
import os
import sys
import types
from collections import deque
from collections.abc import Sequence
from typing import Any

from boardfit.edge.engines.settings import EngineSettings, default_threads
from boardfit.edge.errors import EngineError, EngineMissingError
from boardfit.edge.files.gguf import GgufHeader
from boardfit.edge.probe.ggml import find_engine_folder, library_name
from boardfit.edge.probe.proof import Failure, Proof, prove_once
from boardfit.edge.process.last_words import leave_words
from boardfit.edge.requirements import install_line
from boardfit.edge.terminal.output import echo, note_once
from boardfit.edge.terminal.progress import ProgressLine

PACKAGE, PROJECT = "llama_cpp", "llama-cpp-python"
EXTRA = "llama"

_LOG_LINES = 200
_LOG_LEVEL_WARN = 3  # enum ggml_log_level (ggml.h): debug 1, info 2, warn 3, error 4, cont 5
_LOG_LEVEL_CONT = 5
#: The library's last log lines, newest last: (level, line). Shared by all engines of the process,
#: because the library has one logger.
_log: deque[tuple[int, str]] = deque(maxlen=_LOG_LINES)
# Called at least with every symbol we use that is newer than the structs' present layout.
_NEWEST_SYMBOLS = ("llama_version", "llama_model_n_swa", "llama_vocab_is_eog")


@functools.cache
def load_library() -> Any:
    """The module of declarations, with the library proved, loaded, initialized and silenced. Raises
    EngineMissingError if it is absent, EngineError if it is too old or cannot run here.
    """
    # A library that dies before its first kernel runs.
    if died := [failure for failure in prove_engine().failures if failure.op == "load"]:
        raise kernel_error(died[:1])
    module = _import_declarations()
    missing = [name for name in _NEWEST_SYMBOLS if not hasattr(module, name)]
    if missing or not hasattr(module.llama_model_params, "load_mode"):
        raise EngineError(
            "the installed llama-cpp-python is too old for boardfit",
            next_step=f"{install_line(EXTRA, PROJECT)} -U",
        )
    silence(module)
    report_assertions()
    module.llama_backend_init()
    return module


# ---- proof -------------------------------------------------------------------------------------


@functools.cache
def prove_engine() -> Proof:
    """The proof of the installed library on this machine; made now if there is no stamp of one."""
    folder = find_engine_folder()
    if folder is None or os.name != "posix":
        return Proof(0)
    line = ProgressLine("checking the engine on this machine, once")
    try:
        return prove_once(folder, max(2, default_threads()), line)
    finally:
        line.close()


def kernel_error(failures: Sequence[Failure]) -> EngineError:
    """The error for a model that needs kernels which failed their proof."""
    more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
    return EngineError(
        f"the installed engine cannot compute this model on this machine: {failures[0]}{more}",
        next_step="build the engine on this machine, from a checkout: scripts/build_engine; "
        "on a board: edge build --with-engine",
    )


def choose_buffers(header: GgufHeader, settings: EngineSettings) -> EngineSettings:
    """The settings with which a model runs on kernels that passed their proof. Raises EngineError
    when one failed that the model cannot do without.
    """
    proof, kv_type = prove_engine(), settings.kv_type.upper()
    needs = {("cast", kv_type), ("attention", kv_type)}
    for tensor in header.tensors:
        needs |= {("product", tensor.type_name), ("rows", tensor.type_name)}
        if len(tensor.dims) > 2:
            needs.add(("experts", tensor.type_name))
    if failed := proof.find_failures(needs, extra=False):
        raise kernel_error(failed)
    if not settings.repack or not (failed := proof.find_failures(needs, extra=True)):
        return settings
    note_once(
        f"the engine's faster weight layouts fail on this machine ({failed[0]}); it runs without "
        "them, with slower prefill"
    )
    return settings.replace(repack=False)


def _import_declarations() -> Any:
    name = f"{PACKAGE}.{PACKAGE}"
    if PACKAGE in sys.modules:  # the whole package is loaded already
        return importlib.import_module(name)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise EngineMissingError("llama-cpp-python is not installed", next_step=install_line(EXTRA))
    # A bare package in place of the real one while the declarations load; taken out again after,
    # so that `import llama_cpp` by other code still gets the real thing.
    bare = types.ModuleType(PACKAGE)
    bare.__path__ = list(spec.submodule_search_locations)
    bare.__spec__ = spec
    before = set(sys.modules)
    sys.modules[PACKAGE] = bare
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise EngineMissingError(
            f"llama-cpp-python is installed but its library does not load: {error}",
            next_step=f"{install_line(EXTRA, PROJECT)} --force-reinstall --no-cache-dir",
        ) from error
    finally:
        for added in set(sys.modules) - before:
            if added == PACKAGE or added.startswith(f"{PACKAGE}."):
                del sys.modules[added]


@functools.cache
def version() -> str:
    """Version of the installed llama-cpp-python. Metadata takes milliseconds to read."""
    from importlib.metadata import version as installed

    return installed("llama-cpp-python")


def cpu_features(module: Any) -> list[str]:
    """Names of the kernels' features that are on (`NEON`, `DOTPROD`, `AVX2` …)."""
    text = module.llama_print_system_info().decode("utf-8", "replace")
    pairs = [part.rpartition(":")[2].split("=") for part in text.split("|")]
    return [pair[0].strip() for pair in pairs if len(pair) == 2 and pair[1].strip() == "1"]


# ---- log --------------------------------------------------------------------------------------


def silence(module: Any) -> None:
    """Send the library's log to the emptied ring; again at every open, for the package's own."""
    callback, address = _log_callback(module)
    module.llama_log_set(callback, address)
    _log.clear()


@functools.cache
def _log_callback(module: Any) -> tuple[Any, ctypes.c_void_p]:
    def write(level: int, text: bytes | None, _user_data: object) -> None:
        line = (text or b"").decode("utf-8", "replace").rstrip("\n")
        if level == _LOG_LEVEL_CONT and _log:
            level, start = _log.pop()
            line = start + line
        if line:
            _log.append((level, line))

    return module.llama_log_callback(write), ctypes.c_void_p(0)


def log_tail() -> str:
    """The newest warnings and errors of the library, one line each; `` where there were none."""
    bad = [line for level, line in _log if level >= _LOG_LEVEL_WARN]
    return "\n".join(bad[-4:])


def report_assertions() -> None:
    """Hand the words of a failed native assertion to the supervisor; no debugger is started."""
    os.environ["GGML_NO_BACKTRACE"] = "1"
    if (folder := find_engine_folder()) and (base := folder / library_name("ggml-base")).is_file():
        ctypes.CDLL(str(base)).ggml_set_abort_callback(_assertion_callback())


@functools.cache
def _assertion_callback() -> Any:
    def hand_on(message: bytes) -> None:
        text = message.decode("utf-8", "replace")
        if not leave_words(text):
            echo(text, err=True)

    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(hand_on)


def engine_error(message: str) -> EngineError:
    """An EngineError with what the library had to say about it."""
    tail = log_tail()
    report = f"; llama.cpp reported: {tail}" if tail else ""
    return EngineError(message + report)
