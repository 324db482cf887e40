"""A quick measurement of memory bandwidth: copies of a block larger than small caches, timed."""

from __future__ import annotations

import ctypes
import threading
import time


def measure_copy_bandwidth(
    n_threads: int = 1, *, block_bytes: int = 32 * 1024**2, seconds: float = 0.05
) -> float:
    """Bytes per second read and written by `n_threads` copying at once, each its part of a block.

    ctypes releases the interpreter lock during `memmove`, so that threads really run in parallel.
    The best of several passes is taken: other processes can only slow a pass down. Caches as large
    as the block make it optimistic; nothing in the standard library can flush them.
    """
    part = max(block_bytes // n_threads, 1)
    source = ctypes.create_string_buffer(part * n_threads)
    target = ctypes.create_string_buffer(part * n_threads)
    begin, end = ctypes.addressof(source), ctypes.addressof(target)

    def copy(index: int) -> None:
        ctypes.memmove(end + index * part, begin + index * part, part)

    def one_pass() -> float:
        threads = [threading.Thread(target=copy, args=(i,)) for i in range(1, n_threads)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        copy(0)
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    one_pass()  # touches every page, so that faults are not timed
    best, deadline = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        best = min(best, one_pass())
    return 2 * part * n_threads / max(best, 1e-9)
