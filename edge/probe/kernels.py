"""The engine's own kernels, timed: bytes per second of 4-bit decode and products per second of
prefill. Runs in a process of its own: an engine built for another CPU dies with an illegal
instruction, which is a finding.
"""

import array
import itertools
import json
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boardfit.device_profiles.cost.kernels import is_repacked
from boardfit.edge.files.ggml_types import row_bytes
from boardfit.edge.probe.ggml import Bench, Ggml

# The bytes of one block of small ordinary weights: a scale of 0.01 in half precision, then any
# bits. Source: ggml/src/ggml-common.h.
_HALF = struct.pack("<e", 0.01)
_BLOCKS = {
    "Q4_0": _HALF + bytes(range(7, 23)),
    "Q8_0": _HALF + bytes(range(32)),
    "Q4_K": _HALF + _HALF + bytes([17] * 12) + bytes(range(128)),
    # What llama-quantize puts in place of Q4_K where 256 does not divide a row, and in Q4_K_M.
    "Q5_0": _HALF + bytes([85] * 4) + bytes(range(7, 23)),
    "Q6_K": bytes(range(192)) + bytes([3] * 16) + _HALF,
}
_N_EMBD = 4096
_N_TOKENS = 64  # the engine's batched kernels need four and more columns; this is well beyond


def time_products(
    ggml: Ggml,
    kind: str,
    n_matrices: int,
    n_tokens: int,
    threads: Sequence[int],
    *,
    repacked: bool,
    budget_s: float,
) -> Iterator[float]:
    """Seconds of `n_matrices` products of 4096×4096 weights with `n_tokens` columns in one graph,
    for each number of threads: the shortest of several passes, since others can only slow one down.
    """  # fmt: skip
    data = _BLOCKS[kind] * (_N_EMBD * row_bytes(kind, _N_EMBD) // len(_BLOCKS[kind]))
    floats = array.array("f", [0.5]) * (_N_EMBD * n_tokens)
    buffer = ggml.repack_buffers()[-1] if repacked else None
    with Bench(ggml, threads[0], buffer) as bench:
        column = bench.input(floats.tobytes(), _N_EMBD, n_tokens)
        matrices = [bench.weight(kind, data, _N_EMBD, _N_EMBD) for _ in range(n_matrices)]
        graph = bench.build(*(ggml.mul_mat(bench.rest, matrix, column) for matrix in matrices))
        for n_threads in threads:
            ggml.threads(ggml.backend, n_threads)
            bench.run(graph)  # starts the threads and faults the pages in
            best, spent, passes = float("inf"), 0.0, 0
            while passes < 2 or spent < budget_s:
                start = time.perf_counter()
                bench.run(graph)
                took = time.perf_counter() - start
                best, spent, passes = min(best, took), spent + took, passes + 1
            yield best


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
    per_matrix = _N_EMBD * row_bytes("Q4_0", _N_EMBD)
    n_matrices = max(1, round(weight_bytes / per_matrix))
    decode = time_products(ggml, "Q4_0", n_matrices, 1, threads, repacked=False, budget_s=budget_s)
    for n_threads, seconds in zip(threads, decode, strict=True):
        yield {"threads": n_threads, "bytes_per_s": n_matrices * per_matrix / seconds}
    can_repack, most = bool(ggml.repack_buffers()), max(threads)
    for kind, repacked in itertools.product(_BLOCKS, (True, False)):
        if repacked and not (can_repack and is_repacked(kind, _N_EMBD, isa)):
            continue
        [seconds] = time_products(
            ggml, kind, 1, _N_TOKENS, [most], repacked=repacked, budget_s=budget_s
        )
        rate = _N_EMBD * _N_EMBD * _N_TOKENS / seconds
        yield {"type": kind, "repacked": repacked, "threads": most, "macs_per_s": rate}


def main(argv: Sequence[str]) -> None:
    """`FOLDER THREADS,THREADS… WEIGHT_BYTES BUDGET_S` → one JSON line per finding on stdout."""
    folder, threads, weight_bytes, budget_s = argv
    counts = [int(part) for part in threads.split(",")]
    for finding in measure(Path(folder), counts, int(weight_bytes), float(budget_s)):
        print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
