"""The ggml library that llama-cpp-python brings, bound with ctypes. Every caller runs in a process
of its own: an engine built for another CPU dies with an illegal instruction.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any

from boardfit.edge.files.ggml_types import GGML_TYPES

#: The buffer type of weights as the file has them; others hold them in a layout of the CPU's own.
PLAIN = "plain"
# The engine's names of what it was compiled for → ours. Source: ggml/src/ggml-cpu/ggml-cpu.cpp,
# ggml_backend_cpu_get_features.
_FEATURES = {
    "NEON": "neon", "DOTPROD": "dotprod", "MATMUL_INT8": "i8mm", "FP16_VA": "fp16", "SVE": "sve",
    "SME": "sme", "AVX": "avx", "AVX2": "avx2", "AVX_VNNI": "avx_vnni", "FMA": "fma",
    "F16C": "f16c", "AVX512": "avx512", "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16", "AMX_INT8": "amx_int8",
}  # fmt: skip


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p),
                ("no_alloc", ctypes.c_bool))  # fmt: skip


class Feature(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


def bind(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


class Ggml:
    """The few functions of ggml that a timed product needs. Raises OSError or AttributeError."""

    def __init__(self, folder: Path) -> None:
        base = self.base = ctypes.CDLL(str(folder / library_name("ggml-base")))
        cpu = ctypes.CDLL(str(cpu_library(folder)))
        pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
        self.init = bind(base, "ggml_init", pointer, InitParams)
        self.free = bind(base, "ggml_free", None, pointer)
        self.tensor = bind(
            base, "ggml_new_tensor_4d", pointer, pointer, integer, *[ctypes.c_int64] * 4
        )
        self.mul_mat = bind(base, "ggml_mul_mat", *[pointer] * 4)
        self.graph = bind(base, "ggml_new_graph", pointer, pointer)
        self.first_tensor = bind(base, "ggml_get_first_tensor", pointer, pointer)
        self.expand = bind(base, "ggml_build_forward_expand", None, pointer, pointer)
        self.n_bytes = bind(base, "ggml_nbytes", size, pointer)
        self.place = bind(base, "ggml_backend_alloc_ctx_tensors", *[pointer] * 3)
        self.place_in = bind(base, "ggml_backend_alloc_ctx_tensors_from_buft", *[pointer] * 3)
        self.set = bind(base, "ggml_backend_tensor_set", None, pointer, pointer, size, size)
        self.get = bind(base, "ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self.compute = bind(base, "ggml_backend_graph_compute", integer, pointer, pointer)
        self.buffer_free = bind(base, "ggml_backend_buffer_free", None, pointer)
        self.device_of = bind(base, "ggml_backend_get_device", pointer, pointer)
        self.supports = bind(base, "ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer)
        self.procedure = bind(
            base, "ggml_backend_reg_get_proc_address", pointer, pointer, ctypes.c_char_p
        )
        self.cpu_init = bind(cpu, "ggml_backend_cpu_init", pointer)
        self.cpu_registry = bind(cpu, "ggml_backend_cpu_reg", pointer)
        self.threads = bind(cpu, "ggml_backend_cpu_set_n_threads", None, pointer, integer)
        log = bind(base, "ggml_log_set", None, pointer, pointer)
        self._silence = ctypes.CFUNCTYPE(None, integer, ctypes.c_char_p, pointer)(lambda *_: None)
        log(ctypes.cast(self._silence, pointer), None)
        self.backend = self.cpu_init()

    def isa(self) -> frozenset[str]:
        """What the library was compiled for. A repacked layout for anything else crashes."""
        address = self.procedure(self.cpu_registry(), b"ggml_backend_get_features")
        if not address:
            return frozenset()
        ask = ctypes.CFUNCTYPE(ctypes.POINTER(Feature), ctypes.c_void_p)(address)
        listed, found, i = ask(self.cpu_registry()), set(), 0
        while listed and listed[i].name:
            name = listed[i].name.decode("ascii", "replace")
            if listed[i].value != b"0" and name in _FEATURES:
                found.add(_FEATURES[name])
            i += 1
        return frozenset(found)

    def repack_buffers(self) -> list[int]:
        """Buffer types that store weights in a layout of the CPU's own, as the engine asks for."""
        address = self.procedure(self.cpu_registry(), b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        ask = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)
        listed = ask(self.device_of(self.backend))
        found: list[int] = []
        while listed and (value := listed[len(found)]):
            found.append(value)
        return found


class Wrong(Exception):
    """A kernel's result is not the reference's."""


class NotOffered(Exception):
    """ggml has no kernel for this operation on these tensors."""


class Bench:
    """One graph: tensors of weights in one buffer type, the others in the plain one."""

    def __init__(self, lib: Ggml, n_threads: int, buffer: int | None = None) -> None:
        self.lib, self._buffer = lib, buffer
        small = InitParams(4 << 20, None, True)
        self.weights, self.rest = lib.init(small), lib.init(small)
        self._data: list[tuple[int, bytes]] = []
        self._buffers: list[int] = []
        lib.threads(lib.backend, n_threads)

    def weight(self, kind: str, data: bytes, *shape: int) -> int:
        return self._tensor(self.weights, kind, data, shape)

    def input(self, data: bytes, *shape: int, kind: str = "F32") -> int:
        return self._tensor(self.rest, kind, data, shape)

    def _tensor(self, context: int, kind: str, data: bytes, shape: tuple[int, ...]) -> int:
        tensor = int(self.lib.tensor(context, GGML_TYPES[kind].id, *(*shape, 1, 1, 1)[:4]))
        self._data.append((tensor, data))
        return tensor

    def build(self, *results: int) -> int:
        """The graph that computes the results, its tensors placed and filled. Raises Wrong, or
        NotOffered before anything is filled: a layout that lacks a type would abort.
        """
        lib = self.lib
        for context, kind in ((self.weights, self._buffer), (self.rest, None)):
            if not lib.first_tensor(context):
                continue
            place = lib.place(context, lib.backend) if kind is None else lib.place_in(context, kind)
            if not place:
                raise Wrong("the buffer cannot be allocated")
            self._buffers.append(place)
        if not all(lib.supports(lib.device_of(lib.backend), result) for result in results):
            raise NotOffered
        for tensor, data in self._data:
            lib.set(tensor, data, 0, len(data))
        graph = int(lib.graph(self.rest))
        for result in results:
            lib.expand(graph, result)
        return graph

    def run(self, graph: int) -> None:
        if self.lib.compute(self.lib.backend, graph) != 0:
            raise Wrong("the graph does not run")

    def compute(self, result: int) -> bytes:
        """The result's bytes. Raises NotOffered or Wrong."""
        self.run(self.build(result))
        out = ctypes.create_string_buffer(self.lib.n_bytes(result))
        self.lib.get(result, out, 0, len(out))
        return out.raw

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for place in self._buffers:
            self.lib.buffer_free(place)
        self.lib.free(self.weights)
        self.lib.free(self.rest)


def find_engine_folder() -> Path | None:
    """Where the installed engine keeps its libraries; nothing of them is loaded."""
    spec = importlib.util.find_spec("llama_cpp")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (folder := Path(place) / "lib").is_dir():
            return folder
    return None


def library_folder() -> Path | None:
    """The same, only where ggml's libraries can be used alone."""
    folder = find_engine_folder()
    if folder and cpu_library(folder) and (folder / library_name("ggml-base")).is_file():
        return folder
    return None


def cpu_library(folder: Path) -> Path | None:
    """The kernels: one library, or of several variants the one that scores highest on this CPU, as
    the engine chooses (ggml/src/ggml-backend-reg.cpp, ggml_backend_load_best). None without any.
    """
    if (plain := folder / library_name("ggml-cpu")).is_file():
        return plain
    scores: dict[Path, int] = {}
    for path in sorted(folder.glob(library_name("ggml-cpu-*"))):
        try:
            scores[path] = ctypes.CDLL(str(path)).ggml_backend_score()
        except (OSError, AttributeError):
            continue
    best = max(scores, key=lambda path: scores[path], default=None)
    return best if best and scores[best] > 0 else None


def library_name(name: str) -> str:
    return f"lib{name}.dylib" if sys.platform == "darwin" else f"lib{name}.so"
