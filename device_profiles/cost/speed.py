"""Seconds per token from bytes over bandwidth and products over kernel rate.

How far published figures are met is in docs/validation; the bound beside every figure states it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from boardfit.device_profiles.cost.engine_classes import LLAMA_CPP, Bounds, EngineClass
from boardfit.device_profiles.cost.kernels import (
    cluster_weight,
    core_read_rate,
    is_little,
    is_repacked,
)
from boardfit.device_profiles.cost.measured_rates import (
    measured_bandwidth,
    measured_throughput,
    with_implied_clocks,
)
from boardfit.device_profiles.cost.memory import StoredTensor, is_matmul_weight, kv_bytes_read
from boardfit.device_profiles.profile import FROM_SPECIFICATIONS, CpuCluster, DeviceProfile
from boardfit.device_profiles.shape import ModelShape, is_behind

# Multiply-accumulates per cycle and core in attention against the cache. Fitted on the growth of
# Pi 5 prefill time from 512 to 16,384 tokens (edge-llm-memory-wall): 2.5 to 3.2 for an f16 cache,
# 1.05 for q8_0. Cores without dot product or half-precision arithmetic do about half.
_ATTENTION_MACS_F16 = 2.8
_ATTENTION_MACS_QUANTIZED = 1.05

# Reading and computing overlap, but not perfectly: the p-norm of the two times, between adding up
# (1) and full overlap (infinity). Met by Pi 5 rows from one to four threads.
_OVERLAP = 3.0
# Threads beyond those that fill the memory get in each other's way: published sweeps on the Pi 5
# lose 4 to 8 % with each (edge-llm-memory-wall, potato-os/core). A board's sustained bandwidth is
# that of all its fast cores, so that fewer threads reach up to this much more.
_CONTENTION, _CONTENTION_MOST = 0.05, 0.10

# Share of the theoretical bandwidth that a CPU sustains, without a measurement: the median
# of the boards that have both figures.
SUSTAINED_SHARE_OF_THEORETICAL = 0.52

# How much wider the bound of decode gets where its bandwidth is not measured: the ratio of the 90th
# percentiles of the errors with and without it (docs/validation).
UNMEASURED_BOUND_FACTOR = 1.15

# Experts see only the tokens routed to them: their products are too thin for the kernels' best
# rate. OLMoE's published prefill on the Pi 5 is half of what a dense model of its size would do.
_EXPERT_RATE = 0.45

# The smallest model of the published rows (SmolLM-135M at 4 bits) reads 75 MB for a token. Below it
# what a token costs beside its products counts most, and no row is a basis: a factor of two.
_LEAST_PUBLISHED_BYTES, _TINY_BOUND = 60_000_000, 1.0

# Threads on the little cores help where the engine hands out small pieces, and hold all others up
# where it splits evenly: neither is modelled, so that bounds get wider. An engineering estimate.
_CROWDED_FACTOR = 1.6

# Tokens that one pass over the weights serves in prefill (the default micro-batch).
_MICRO_BATCH = 512


@dataclass(frozen=True)
class SpeedEstimate:
    """Tokens per second; None where the board lacks the constant. Bounds are relative: the truth
    lies between estimate / (1 + bound) and estimate × (1 + bound).
    """

    decode_tps: float | None
    prefill_tps: float | None
    decode_bound: float = LLAMA_CPP.bounds().decode
    prefill_bound: float = LLAMA_CPP.bounds().prefill

    def answer_s(self, n_prompt: int, n_answer: int) -> float | None:
        """Seconds to read a prompt and write an answer; None where a speed is unknown."""
        if not self.prefill_tps or not self.decode_tps:
            return None
        return n_prompt / self.prefill_tps + n_answer / self.decode_tps

    @property
    def typical_answer_s(self) -> float | None:
        """Seconds of the answer by which runs are compared: 256 tokens in and 128 out."""
        return self.answer_s(256, 128)


def used_clusters(profile: DeviceProfile) -> tuple[CpuCluster, ...]:
    """Clusters worth a thread: without little cores, which hold up the fast ones, if it can be."""
    fast = tuple(cluster for cluster in profile.clusters if not is_little(cluster.core))
    return fast or profile.clusters


def default_threads(profile: DeviceProfile) -> int:
    """One thread per core of the clusters worth using."""
    return sum(cluster.count for cluster in used_clusters(profile))


def active_share(tensor: StoredTensor, shape: ModelShape) -> float:
    """Share of a tensor that one token reads: experts in use over experts stored."""
    if tensor.n_matrices > 1 and shape.n_expert:
        return shape.n_expert_used / shape.n_expert
    return 1.0


# Tables of which a token reads one row. Source: src/llama-arch.cpp, LLM_TENSOR_INFOS (GET_ROWS).
_TABLES = frozenset(("per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"))


def weight_bytes_read(tensors: Iterable[StoredTensor], shape: ModelShape) -> int:
    """Weight bytes that one decoded token reads: of tables that are looked up, one row."""
    total = 0.0
    for tensor in tensors:
        if tensor.name == "token_embd.weight" and not shape.tied_embeddings:
            continue
        if tensor.name in _TABLES or is_behind(tensor.name, shape.n_layer):
            continue
        total += tensor.n_bytes * active_share(tensor, shape)
    return int(total)


def _core_rates(profile: DeviceProfile, n_threads: int) -> list[tuple[CpuCluster, int]]:
    """Clusters and threads on each, fastest first; only cores that are worth a thread."""
    left, out = n_threads, []
    for cluster in sorted(used_clusters(profile), key=cluster_weight, reverse=True):
        count = min(left, cluster.count)
        if count:
            out.append((cluster, count))
        left -= count
    return out


def _products(
    tensors: Iterable[StoredTensor], shape: ModelShape
) -> Iterator[tuple[StoredTensor, bool, float]]:
    """(matrix, whether it is the output head, share that one token reads) of every product."""
    head = "token_embd.weight" if shape.tied_embeddings else "output.weight"
    for tensor in tensors:
        is_head = tensor.name in (head, "output.weight")
        if (is_head or is_matmul_weight(tensor.name)) and not is_behind(tensor.name, shape.n_layer):
            yield tensor, is_head, active_share(tensor, shape)


class _Cores:
    """What the cores do per second that some threads of an engine run on."""

    def __init__(
        self, profile: DeviceProfile, n_threads: int, engine: EngineClass, *, repack: bool
    ) -> None:
        self._profile, self._n_threads, self._repack = profile, n_threads, repack
        self._engine, self._used = engine, _core_rates(profile, n_threads)
        self._cycles = [(c, n * c.clock_hz) for c, n in self._used if c.clock_hz is not None]
        self._has_clocks = bool(self._used) and len(self._cycles) == len(self._used)

    def _throughput(self, ggml_type: str, n_rows: int) -> float | None:
        isa, rate = self._profile.isa, self._engine.rate
        if self._engine is LLAMA_CPP and self._profile.kernel_speeds:
            fastest = self._used[0][0].core if self._used else ""
            found = measured_throughput(
                self._profile.kernel_speeds,
                ggml_type,
                repacked=self._repack and is_repacked(ggml_type, n_rows, isa),
                relative=lambda name: rate(name, n_rows, isa, fastest, repack=self._repack),
                cores=lambda n: sum(
                    cluster_weight(c) * k for c, k in _core_rates(self._profile, n)
                ),
                n_threads=self._n_threads,
            )
            if found is not None:
                return found
        rates = [rate(ggml_type, n_rows, isa, c.core, repack=self._repack) for c, _ in self._cycles]
        if not self._has_clocks or None in rates:
            return None
        return sum((r or 0.0) * n for r, (_, n) in zip(rates, self._cycles, strict=True))

    def product_s(
        self, tensors: Iterable[StoredTensor], shape: ModelShape, *, with_head: bool
    ) -> float | None:
        """Compute time of one token's matrix products; None if a constant lacks. `with_head` counts
        the output head: decode computes it for each token, prefill for the last.
        """
        throughputs: dict[tuple[str, int], float | None] = {}
        seconds = 0.0
        for tensor, is_head, share in _products(tensors, shape):
            if is_head and not with_head:
                continue
            key = (tensor.ggml_type, tensor.n_rows)
            if key not in throughputs:
                throughputs[key] = self._throughput(*key)
            rate = throughputs[key]
            if rate is None:
                return None
            if share < 1.0 and not with_head:
                rate *= _EXPERT_RATE
            seconds += tensor.n_elements * share / rate
        return seconds

    def attention_s(self, shape: ModelShape, depth: float, kv_type: str) -> float | None:
        """Compute time of one token's attention over `depth` cached tokens."""
        if not self._has_clocks:
            return None
        macs = 0.0
        for layer in shape.layers:
            if layer.n_head_kv:
                reach = depth if layer.window is None else min(depth, layer.window)
                macs += reach * shape.n_head * (layer.head_dim_k + layer.head_dim_v)
        is_float = kv_type in ("f16", "f32", "bf16")
        per_cycle = _ATTENTION_MACS_F16 if is_float else _ATTENTION_MACS_QUANTIZED
        if not self._engine.isa(self._profile.isa) & {"dotprod", "avx2"}:
            per_cycle /= 2
        return macs / sum(per_cycle * n for _, n in self._cycles)


def read_bandwidth(
    profile: DeviceProfile, n_threads: int, engine: EngineClass = LLAMA_CPP
) -> float | None:
    """Bytes per second that `n_threads` fast cores read, None if the board has no figure. A few
    cores are limited by the misses that each can have in flight, many by the memory.
    """
    memory = profile.memory
    if not engine.on_cpu:
        peak = memory.bandwidth_theoretical
        return None if peak is None else peak * engine.read_share
    measured = measured_bandwidth(memory, n_threads)
    if measured is not None:
        return measured * engine.read_share
    limit = memory.bandwidth_sustained
    if limit is None:
        if memory.bandwidth_theoretical is None:
            return None
        limit = memory.bandwidth_theoretical * SUSTAINED_SHARE_OF_THEORETICAL
    spare = max(0, default_threads(profile) - n_threads)
    limit *= engine.read_share * (1 + min(_CONTENTION * spare, _CONTENTION_MOST))
    cores = sum(core_read_rate(c.core) * count for c, count in _core_rates(profile, n_threads))
    return float((limit**-4 + cores**-4) ** -0.25)


def is_unusual(tensors: Iterable[StoredTensor], shape: ModelShape) -> bool:
    return any(layer.n_head_kv == 0 or layer.state_values for layer in shape.layers) or any(
        tensor.name == "per_layer_token_embd.weight" for tensor in tensors
    )


def _overlap_s(one: float, other: float) -> float:
    return float((one**_OVERLAP + other**_OVERLAP) ** (1 / _OVERLAP))


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
    engine: EngineClass = LLAMA_CPP,
) -> SpeedEstimate:
    """Decode at a context depth of `depth`, and prefill of `n_prompt` tokens into an empty context.

    Decode reads weights and cache and computes, overlapping, and pays an overhead per layer and
    token. Prefill computes, while the weights are read once for a micro-batch. A board that
    throttles keeps `sustained_share` of both.
    """
    tensors, profile = tuple(tensors), with_implied_clocks(profile)
    share = profile.sustained_share or 1.0
    overhead = engine.layer_s * shape.n_layer + engine.token_s
    bandwidth = read_bandwidth(profile, n_threads, engine)
    weights = weight_bytes_read(tensors, shape)
    bounds = _bounds(engine, profile, n_threads, weights, unusual=is_unusual(tensors, shape))
    decode = prefill = None
    if not engine.on_cpu:
        if bandwidth is not None:
            read = weights + kv_bytes_read(shape, depth, kv_type)
            decode = share / (read / bandwidth + overhead)
            if engine.macs_per_byte is not None:
                rate = engine.macs_per_byte * bandwidth / engine.read_share
                prefill = share / (body_macs(tensors, shape) / rate + overhead / n_prompt)
        return SpeedEstimate(decode, prefill, bounds.decode, bounds.prefill)

    cores = _Cores(profile, n_threads, engine, repack=repack)
    one, body = (cores.product_s(tensors, shape, with_head=head) for head in (True, False))
    deep, mean = (cores.attention_s(shape, at, kv_type) for at in (depth, n_prompt / 2))
    if bandwidth is not None:
        compute = (one + deep) if one is not None and deep is not None else 0.0
        read = weights + kv_bytes_read(shape, depth, kv_type)
        decode = share / (_overlap_s(read / bandwidth, compute) + overhead)
    if body is not None and mean is not None:
        batch = max(1, min(n_prompt, _MICRO_BATCH))
        read_s = weights / bandwidth / batch if bandwidth is not None else 0.0
        prefill = share / (_overlap_s(body + mean, read_s) + overhead / batch)
    return SpeedEstimate(decode, prefill, bounds.decode, bounds.prefill)


def _bounds(
    engine: EngineClass, profile: DeviceProfile, n_threads: int, weights: int, *, unusual: bool
) -> Bounds:
    decode, prefill = engine.bounds(unusual=unusual).decode, engine.bounds(unusual=unusual).prefill
    if weights < _LEAST_PUBLISHED_BYTES:
        decode, prefill = max(decode, _TINY_BOUND), max(prefill, _TINY_BOUND)
    if not engine.on_cpu:
        return Bounds(decode, prefill)
    if n_threads > default_threads(profile):
        decode, prefill = decode * _CROWDED_FACTOR, prefill * _CROWDED_FACTOR
    memory = profile.memory
    # Copies of memory, timed where no engine is installed, only stand in for what decode reads.
    copied = bool(memory.bandwidth_by_threads) and not profile.kernel_speeds
    if copied or profile.basis == FROM_SPECIFICATIONS or not memory.bandwidth_sustained:
        decode *= UNMEASURED_BOUND_FACTOR
    return Bounds(decode, prefill)


def body_macs(tensors: Iterable[StoredTensor], shape: ModelShape) -> float:
    """Multiply-accumulates of one token without the output head, which prefill computes once."""
    return sum(
        tensor.n_elements * share
        for tensor, is_head, share in _products(tensors, shape)
        if not is_head
    )


def load_seconds(file_bytes: int, profile: DeviceProfile) -> float | None:
    """Time to read a file from the board's storage into memory, None if its speed is unknown."""
    return file_bytes / profile.storage.read if profile.storage.read else None
