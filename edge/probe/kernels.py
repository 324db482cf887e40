"""The engine's own kernels, timed: bytes per second of 4-bit decode and products per second of
prefill, through the ggml library that llama-cpp-python brings.

Runs in a process of its own (`python -m edge.probe.kernels`): an engine built for another CPU dies
with an illegal instruction, and that is a finding, not the end of the probe.
"""

from __future__ import annotations

import array
import ctypes
import importlib.util
import json
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from device_profiles.cost.kernels import is_repacked

# enum ggml_type and the bytes of one block whose weights are small ordinary numbers: a scale of
# 0.01 in half precision, then any bits. Source: ggml/include/ggml.h, ggml/src/ggml-common.h.
_HALF = struct.pack("<e", 0.01)
_BLOCKS: dict[str, tuple[int, int, bytes]] = {
    "Q4_0": (2, 32, _HALF + bytes(range(7, 23))),
    "Q8_0": (8, 32, _HALF + bytes(range(32))),
    "Q4_K": (12, 256, _HALF + _HALF + bytes([17] * 12) + bytes(range(128))),
    # What llama-quantize puts in place of Q4_K where 256 does not divide a row, and in Q4_K_M.
    "Q5_0": (6, 32, _HALF + bytes([85] * 4) + bytes(range(7, 23))),
    "Q6_K": (14, 256, bytes(range(192)) + bytes([3] * 16) + _HALF),
}
_F32 = 0
_N_EMBD = 4096
_N_TOKENS = 64  # the engine's batched kernels need four and more columns; this is well beyond
# The engine's names of what it was compiled for → ours. Source: ggml/src/ggml-cpu/ggml-cpu.cpp,
# ggml_backend_cpu_get_features.
_FEATURES = {
    "NEON": "neon", "DOTPROD": "dotprod", "MATMUL_INT8": "i8mm", "FP16_VA": "fp16", "SVE": "sve",
    "SME": "sme", "AVX": "avx", "AVX2": "avx2", "AVX_VNNI": "avx_vnni", "FMA": "fma",
    "F16C": "f16c", "AVX512": "avx512", "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16", "AMX_INT8": "amx_int8",
}  # fmt: skip


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class _Feature(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


class Ggml:
    """The few functions of ggml that a timed product needs. Raises OSError when a library does not
    load, AttributeError when it lacks a function.
    """

    def __init__(self, folder: Path) -> None:
        base = ctypes.CDLL(str(folder / _library("ggml-base")))
        cpu = ctypes.CDLL(str(cpu_library(folder)))
        pointer, integer = ctypes.c_void_p, ctypes.c_int

        def bind(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            return function

        self.init = bind(base, "ggml_init", pointer, _InitParams)
        self.free = bind(base, "ggml_free", None, pointer)
        self.tensor = bind(
            base, "ggml_new_tensor_2d", pointer, pointer, integer, ctypes.c_int64, ctypes.c_int64
        )
        self.mul_mat = bind(base, "ggml_mul_mat", pointer, pointer, pointer, pointer)
        self.graph = bind(base, "ggml_new_graph", pointer, pointer)
        self.expand = bind(base, "ggml_build_forward_expand", None, pointer, pointer)
        self.n_bytes = bind(base, "ggml_nbytes", ctypes.c_size_t, pointer)
        self.place = bind(base, "ggml_backend_alloc_ctx_tensors", pointer, pointer, pointer)
        self.place_in = bind(
            base, "ggml_backend_alloc_ctx_tensors_from_buft", pointer, pointer, pointer
        )
        self.set = bind(
            base, "ggml_backend_tensor_set", None, pointer, pointer, ctypes.c_size_t,
            ctypes.c_size_t,
        )  # fmt: skip
        self.compute = bind(base, "ggml_backend_graph_compute", integer, pointer, pointer)
        self.buffer_free = bind(base, "ggml_backend_buffer_free", None, pointer)
        self.device_of = bind(base, "ggml_backend_get_device", pointer, pointer)
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
        """What the library was compiled for, or found at run time; a repacked layout exists for
        these alone, and asking for another one crashes.
        """
        address = self.procedure(self.cpu_registry(), b"ggml_backend_get_features")
        if not address:
            return frozenset()
        ask = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(address)
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


class Products:
    """`n` matrices of 4096×4096 weights in one graph, each multiplied with `n_tokens` columns."""

    def __init__(
        self, ggml: Ggml, kind: str, n_matrices: int, n_tokens: int, *, repacked: bool
    ) -> None:
        self._ggml = ggml
        code, block, pattern = _BLOCKS[kind]
        small = _InitParams(4 << 20, None, True)
        self._weights, self._rest = ggml.init(small), ggml.init(small)
        matrices = [ggml.tensor(self._weights, code, _N_EMBD, _N_EMBD) for _ in range(n_matrices)]
        column = ggml.tensor(self._rest, _F32, _N_EMBD, n_tokens)
        self.graph = ggml.graph(self._rest)
        for matrix in matrices:
            ggml.expand(self.graph, ggml.mul_mat(self._rest, matrix, column))
        buffers = ggml.repack_buffers() if repacked else []
        self._buffers = [
            ggml.place_in(self._weights, buffers[-1])
            if buffers
            else ggml.place(self._weights, ggml.backend),
            ggml.place(self._rest, ggml.backend),
        ]
        if not all(self._buffers):
            raise MemoryError("the engine could not allocate its matrices")
        data = pattern * (_N_EMBD * _N_EMBD // block)
        for matrix in matrices:
            ggml.set(matrix, data, 0, len(data))
        floats = array.array("f", [0.5]) * (_N_EMBD * n_tokens)
        ggml.set(column, floats.tobytes(), 0, 4 * len(floats))
        self.weight_bytes = n_matrices * len(data)
        self.macs = n_matrices * _N_EMBD * _N_EMBD * n_tokens

    def best_seconds(self, n_threads: int, *, budget_s: float) -> float:
        """The shortest of several passes: other processes can only slow one down."""
        self._ggml.threads(self._ggml.backend, n_threads)
        self._run()  # starts the threads and faults the pages in
        best, spent, passes = float("inf"), 0.0, 0
        while passes < 2 or spent < budget_s:
            start = time.perf_counter()
            self._run()
            took = time.perf_counter() - start
            best, spent, passes = min(best, took), spent + took, passes + 1
        return best

    def _run(self) -> None:
        if self._ggml.compute(self._ggml.backend, self.graph) != 0:
            raise OSError("the engine's graph did not run")

    def close(self) -> None:
        for buffer in self._buffers:
            self._ggml.buffer_free(buffer)
        self._ggml.free(self._weights)
        self._ggml.free(self._rest)


def measure(
    folder: Path, threads: Sequence[int], weight_bytes: int, budget_s: float
) -> Iterator[dict[str, Any]]:
    """Findings as they come: `{"isa": […]}` of the engine's build, `{"threads", "bytes_per_s"}` and
    `{"type", "repacked", "threads", "macs_per_s"}`. `weight_bytes` is what decode reads, more than
    the caches hold; `budget_s` the time of one measurement.
    """
    ggml = Ggml(folder)
    isa = ggml.isa()
    yield {"isa": sorted(isa)}
    per_matrix = _N_EMBD * _N_EMBD // 32 * len(_BLOCKS["Q4_0"][2])
    n_matrices = max(1, round(weight_bytes / per_matrix))
    decode = Products(ggml, "Q4_0", n_matrices, 1, repacked=False)
    try:
        for n_threads in threads:
            seconds = decode.best_seconds(n_threads, budget_s=budget_s)
            yield {"threads": n_threads, "bytes_per_s": decode.weight_bytes / seconds}
    finally:
        decode.close()
    can_repack = bool(ggml.repack_buffers())
    variants = [(kind, repacked) for kind in _BLOCKS for repacked in (True, False)]
    for kind, repacked in variants:
        if repacked and not (can_repack and is_repacked(kind, _N_EMBD, isa)):
            continue
        products = Products(ggml, kind, 1, _N_TOKENS, repacked=repacked)
        try:
            seconds = products.best_seconds(max(threads), budget_s=budget_s)
        finally:
            products.close()
        rate = products.macs / seconds
        yield {"type": kind, "repacked": repacked, "threads": max(threads), "macs_per_s": rate}


def library_folder() -> Path | None:
    """Where the installed engine keeps its libraries; None without one that can be used alone."""
    spec = importlib.util.find_spec("llama_cpp")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "lib"
        if cpu_library(folder) and (folder / _library("ggml-base")).is_file():
            return folder
    return None


def cpu_library(folder: Path) -> Path | None:
    """The kernels: one library, or of several variants the one that scores highest on this CPU, as
    the engine chooses (ggml/src/ggml-backend-reg.cpp, ggml_backend_load_best). None without any.
    """
    if (plain := folder / _library("ggml-cpu")).is_file():
        return plain
    scores: dict[Path, int] = {}
    for path in sorted(folder.glob(_library("ggml-cpu-*"))):
        try:
            scores[path] = ctypes.CDLL(str(path)).ggml_backend_score()
        except (OSError, AttributeError):
            continue
    best = max(scores, key=lambda path: scores[path], default=None)
    return best if best and scores[best] > 0 else None


def _library(name: str) -> str:
    return f"lib{name}.dylib" if sys.platform == "darwin" else f"lib{name}.so"


def main(argv: Sequence[str]) -> None:
    """`FOLDER THREADS,THREADS… WEIGHT_BYTES BUDGET_S` → one JSON line per finding on stdout."""
    folder, threads, weight_bytes, budget_s = argv
    counts = [int(part) for part in threads.split(",")]
    for finding in measure(Path(folder), counts, int(weight_bytes), float(budget_s)):
        print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
