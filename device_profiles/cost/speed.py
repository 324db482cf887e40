"""Seconds per token from bytes over bandwidth and products over kernel rate.

The constants are few and physical: a board's sustained bandwidth, clock and cores come from its
profile, kernel rates from `kernels`. Published rows of the boards that have profiles are met within
about a quarter (decode) and a third (prefill); `error_bound` says so beside every figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from device_profiles.cost.kernels import cluster_weight, is_repacked, macs_per_cycle
from device_profiles.cost.memory import StoredTensor, is_matmul_weight, kv_bytes_read
from device_profiles.profile import CpuCluster, DeviceProfile
from device_profiles.shape import ModelShape

# Multiply-accumulates per cycle and core in attention against the cache. Fitted on the growth of
# Pi 5 prefill time from 512 to 16,384 tokens (edge-llm-memory-wall): 2.5 to 3.2 for an f16 cache,
# 1.05 for q8_0. Cores without dot product or half-precision arithmetic do about half.
_ATTENTION_MACS_F16 = 2.8
_ATTENTION_MACS_QUANTIZED = 1.05

# Fixed cost of a token, per layer (barriers between some thirty operations) and in all (scheduling,
# sampling, Python). Measured on x86-64 at 2.3 GHz with models that decode from cache: 11 µs per
# layer on one thread, 17 µs on two; half as much again is taken for boards.
_LAYER_OVERHEAD_S = 25e-6
_TOKEN_OVERHEAD_S = 150e-6

DECODE_BOUND = 0.25
PREFILL_BOUND = 0.35


@dataclass(frozen=True)
class SpeedEstimate:
    """Tokens per second; None where the board lacks the constant. Bounds are relative."""

    decode_tps: float | None
    prefill_tps: float | None
    decode_bound: float = DECODE_BOUND
    prefill_bound: float = PREFILL_BOUND


def used_clusters(profile: DeviceProfile) -> tuple[CpuCluster, ...]:
    """Clusters worth a thread: those whose cores reach half the fastest core's speed. The engine
    splits a product evenly between threads, so that a slow core holds up the fast ones.
    """
    weights = [cluster_weight(cluster) for cluster in profile.clusters]
    best = max(weights)
    pairs = zip(profile.clusters, weights, strict=True)
    return tuple(cluster for cluster, weight in pairs if weight >= best / 2)


def default_threads(profile: DeviceProfile) -> int:
    """One thread per core of the clusters worth using."""
    return sum(cluster.count for cluster in used_clusters(profile))


def active_share(tensor: StoredTensor, shape: ModelShape) -> float:
    """Share of a tensor that one token reads: experts in use over experts stored."""
    if tensor.n_matrices > 1 and shape.n_expert:
        return shape.n_expert_used / shape.n_expert
    return 1.0


def weight_bytes_read(tensors: Iterable[StoredTensor], shape: ModelShape) -> int:
    """Weight bytes that one decoded token reads: every product's matrix, the output head included,
    but one row of an untied embedding.
    """
    total = 0.0
    for tensor in tensors:
        if tensor.name == "token_embd.weight" and not shape.tied_embeddings:
            continue
        total += tensor.n_bytes * active_share(tensor, shape)
    return int(total)


def _core_rates(profile: DeviceProfile, n_threads: int) -> list[tuple[CpuCluster, int]]:
    """Clusters and threads on each, fastest first."""
    left, out = n_threads, []
    for cluster in sorted(profile.clusters, key=cluster_weight, reverse=True):
        count = min(left, cluster.count)
        if count:
            out.append((cluster, count))
        left -= count
    return out


def product_seconds(
    tensors: Iterable[StoredTensor],
    shape: ModelShape,
    profile: DeviceProfile,
    n_threads: int,
    *,
    repack: bool,
    with_head: bool,
) -> float | None:
    """Compute time of one token's matrix products on `n_threads` cores; None if a constant lacks.

    `with_head` counts the output head: decode computes it for each token, prefill for the last.
    """
    clusters = _core_rates(profile, n_threads)
    if not clusters or any(cluster.clock_hz is None for cluster, _ in clusters):
        return None
    isa = profile.isa
    seconds = 0.0
    for tensor in tensors:
        is_head = tensor.name == "output.weight" or (
            shape.tied_embeddings and tensor.name == "token_embd.weight"
        )
        if not (is_matmul_weight(tensor.name) or is_head) or (is_head and not with_head):
            continue
        repacked = repack and is_repacked(tensor.ggml_type, tensor.n_rows, isa)
        throughput = 0.0
        for cluster, count in clusters:
            rate = macs_per_cycle(tensor.ggml_type, isa, cluster.core, repacked=repacked)
            if rate is None:
                return None
            throughput += rate * count * (cluster.clock_hz or 0.0)
        seconds += tensor.n_elements * active_share(tensor, shape) / throughput
    return seconds


def attention_seconds(
    shape: ModelShape, profile: DeviceProfile, n_threads: int, depth: float, kv_type: str
) -> float | None:
    """Compute time of one token's attention over `depth` cached tokens."""
    clusters = _core_rates(profile, n_threads)
    if not clusters or any(cluster.clock_hz is None for cluster, _ in clusters):
        return None
    macs = 0.0
    for layer in shape.layers:
        if layer.n_head_kv:
            reach = depth if layer.window is None else min(depth, layer.window)
            macs += reach * shape.n_head * (layer.head_dim_k + layer.head_dim_v)
    per_cycle = (
        _ATTENTION_MACS_F16 if kv_type in ("f16", "f32", "bf16") else _ATTENTION_MACS_QUANTIZED
    )
    if not profile.isa & {"dotprod", "avx2"}:
        per_cycle /= 2
    return macs / sum(per_cycle * n * (c.clock_hz or 0.0) for c, n in clusters)


def estimate_speed(
    tensors: Iterable[StoredTensor],
    shape: ModelShape,
    profile: DeviceProfile,
    *,
    n_threads: int,
    kv_type: str,
    repack: bool,
    depth: int = 256,
    n_prompt: int = 512,
) -> SpeedEstimate:
    """Decode at a context depth of `depth`, and prefill of `n_prompt` tokens into an empty context.

    Decode: reading (weights + KV) over the sustained bandwidth and computing overlap, but not
    perfectly; the root of the sum of squares meets Pi 5 rows from one to four threads, where the
    one or the other dominates. Prefill: products and attention add up. A board that throttles
    keeps `sustained_share` of both.
    """
    tensors = tuple(tensors)
    share = profile.sustained_share or 1.0
    overhead = _LAYER_OVERHEAD_S * shape.n_layer + _TOKEN_OVERHEAD_S
    options = {"tensors": tensors, "shape": shape, "profile": profile, "n_threads": n_threads}
    one = product_seconds(**options, repack=repack, with_head=True)  # type: ignore[arg-type]
    body = product_seconds(**options, repack=repack, with_head=False)  # type: ignore[arg-type]
    deep = attention_seconds(shape, profile, n_threads, depth, kv_type)
    mean = attention_seconds(shape, profile, n_threads, n_prompt / 2, kv_type)
    decode = prefill = None
    bandwidth = profile.memory.bandwidth_sustained
    if bandwidth is not None:
        read = weight_bytes_read(tensors, shape) + kv_bytes_read(shape, depth, kv_type)
        compute = (one + deep) if one is not None and deep is not None else 0.0
        decode = share / (math.hypot(read / bandwidth, compute) + overhead)
    if body is not None and mean is not None:
        prefill = share / (body + mean + overhead / 64)
    return SpeedEstimate(decode, prefill)
