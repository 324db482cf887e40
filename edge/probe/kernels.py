"""The engine's own kernels, timed: bytes per second of 4-bit decode and products per second of
prefill, through the ggml library that llama-cpp-python brings.

Runs in a process of its own (`python -m boardfit.edge.probe.kernels`): an engine built for another
CPU dies with an illegal instruction, and that is a finding, not the end of the probe.
"""

from __future__ import annotations

import array
import json
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boardfit.device_profiles.cost.kernels import is_repacked
from boardfit.edge.probe.ggml import Ggml, InitParams

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


class Products:
    """`n` matrices of 4096×4096 weights in one graph, each multiplied with `n_tokens` columns."""

    def __init__(
        self, ggml: Ggml, kind: str, n_matrices: int, n_tokens: int, *, repacked: bool
    ) -> None:
        self._ggml = ggml
        code, block, pattern = _BLOCKS[kind]
        small = InitParams(4 << 20, None, True)
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


def main(argv: Sequence[str]) -> None:
    """`FOLDER THREADS,THREADS… WEIGHT_BYTES BUDGET_S` → one JSON line per finding on stdout."""
    folder, threads, weight_bytes, budget_s = argv
    counts = [int(part) for part in threads.split(",")]
    for finding in measure(Path(folder), counts, int(weight_bytes), float(budget_s)):
        print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
