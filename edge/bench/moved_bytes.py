"""MBU, memory bandwidth utilization: bytes that a decoded token moves, against measured bandwidth.

mbu = bytes_per_step × decode_tps ÷ bandwidth
Source: Databricks, "LLM Inference Performance Engineering: Best Practices", 2023. A step reads
every weight that takes part, and the cache of all tokens before it. Activations are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psutil

from boardfit.device_profiles.shape import is_behind
from boardfit.edge.disk.opened_file import Source
from boardfit.edge.engines.llama.estimate import cache_bytes_per_token, count_layers
from boardfit.edge.files.gguf import GgufHeader, GgufTensor
from boardfit.edge.probe.measure import last_level_cache, measure_copy_bandwidth
from boardfit.edge.probe.system import LocalSystem
from boardfit.edge.units import MIB

# A block smaller than the caches would measure these. One of a small board's memory would swap.
_CACHES, _LEAST, _MOST = 4, 32 * MIB, 512 * MIB
_SHARE_OF_FREE = 1 / 8
_SECONDS = 0.3
# Read by rows, not whole (src/llama-graph.cpp, build_inp_embd).
_BY_ROW = ("token_embd.weight", "per_layer_token_embd.weight")


def measure_bandwidth(n_threads: int) -> float:
    """Time copies of a block larger than the caches: bytes per second, read and written."""
    wanted = max(_LEAST, min(_MOST, _CACHES * (last_level_cache(LocalSystem()) or 0)))
    room = int(psutil.virtual_memory().available * _SHARE_OF_FREE)
    block = max(MIB, min(wanted, room))
    return measure_copy_bandwidth(n_threads, block_bytes=block, seconds=_SECONDS)


def count_step_bytes(path: Source, header: GgufHeader, kv_type: str, depth: int) -> int | None:
    """Count the bytes that one token reads at a depth. None beyond a sliding window: which layers
    have one is not in the header.
    """
    window = header.integer(f"{header.arch}.attention.sliding_window")
    if window and depth > window:
        return None
    cache = depth * cache_bytes_per_token(path, header, kv_type)
    return int(count_weight_bytes(header.tensors, header) + cache)


def count_weight_bytes(tensors: Iterable[GgufTensor], header: GgufHeader) -> float:
    """Count the bytes of weights that one token reads: of experts, those that are asked."""
    listed = list(tensors)
    n_layer = count_layers(header)
    is_tied = all(tensor.name != "output.weight" for tensor in listed)
    n_experts = header.integer(f"{header.arch}.expert_count") or 0
    n_used = header.integer(f"{header.arch}.expert_used_count") or n_experts
    total = 0.0
    for tensor in listed:
        is_head = is_tied and tensor.name == _BY_ROW[0]
        if (tensor.name in _BY_ROW and not is_head) or is_behind(tensor.name, n_layer):
            continue
        share = n_used / n_experts if n_experts and "_exps" in tensor.name else 1.0
        total += tensor.nbytes * share
    return total


def describe_moved(
    record: Mapping[str, Any], path: Source, header: GgufHeader, bandwidth: float
) -> dict[str, Any] | None:
    """The entry `moved` of a decode test's record; None for any other test. `bandwidth` is in bytes
    per second, read and written.
    """
    test, figure = record["test"], record["metrics"].get("decode_tps")
    if test["kind"] != "decode" or not figure or not figure.get("median") or bandwidth <= 0:
        return None
    depth = test["n_depth"] + test["n_gen"] // 2
    n_bytes = count_step_bytes(path, header, str(record["settings"]["kv_type"]), depth)
    if n_bytes is None:
        return None
    return {
        "bytes_per_step": n_bytes,
        "bandwidth": bandwidth,
        "method": f"copy on {record['settings']['n_threads']} threads",
        "mbu": n_bytes * figure["median"] / bandwidth,
    }
