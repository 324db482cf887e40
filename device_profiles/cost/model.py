"""What a run of a model costs on a board: memory and speed in one answer.

The kit plans for the CPU; a GPU's or NPU's figures say whether another road is worth the walk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from boardfit.device_profiles.cost.compute_buffer import Features, compute_bytes, read_features
from boardfit.device_profiles.cost.engine_classes import CUDA, OLD_CUDA, QNN, RKLLM, EngineClass
from boardfit.device_profiles.cost.graph_table import can_hold_graph, metadata_bytes
from boardfit.device_profiles.cost.memory import (
    KV_BLOCK,
    MemoryPhases,
    StoredTensor,
    WeightBytes,
    embedding_bytes,
    engine_anonymous_bytes,
    kv_bytes,
    memory_phases,
    output_bytes,
    split_weights,
)
from boardfit.device_profiles.cost.speed import SpeedEstimate, default_threads, estimate_speed
from boardfit.device_profiles.profile import Accelerator, DeviceProfile
from boardfit.device_profiles.shape import ModelShape


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """An artifact: its tensors, and its size with the header. Each object is a key of its own."""

    artifact_bytes: int
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How weights are loaded and run. Each of `n_users` has a context of `n_ctx`. An embedding
    model takes `n_embedded` tokens in a step; 0 is a model that generates.
    """

    n_ctx: int
    kv_type: str
    n_threads: int
    n_ubatch: int
    use_mmap: bool
    repack: bool
    n_users: int = 1
    n_embedded: int = 0
    server_bytes: int = 0  # what a server takes beside its model


@dataclass(frozen=True)
class Cost:
    """What one run takes: bytes, margin included, and tokens per second of one user alone."""

    memory: MemoryPhases
    speed: SpeedEstimate


class CostModel:
    """The costs of one model on one board. Terms that several runs share are computed once."""

    def __init__(
        self,
        shape: ModelShape,
        profile: DeviceProfile,
        tensor_names: Sequence[str],
        *,
        n_merges: int = 0,
    ) -> None:
        """`n_merges` is the number of BPE merges of the vocabulary."""
        self._shape, self._profile, self._names = shape, profile, tensor_names
        self._engine_bytes = engine_anonymous_bytes(shape, n_merges)
        self._features: Features | None = None
        self._split, self._context = cache(self._split_weights), cache(self._context_bytes)
        self._speed = cache(self._estimate_speed)

    def cost(
        self, weights: StoredWeights, run: RunSettings, *, n_prompt: int = 512, depth: int = 256
    ) -> Cost:
        """Memory of a run, and its speed: prefill of `n_prompt` tokens, decode at `depth`."""
        return Cost(
            self._memory(weights, run),
            self._speed(weights, run.kv_type, run.n_threads, run.repack, n_prompt, depth),
        )

    def find_fastest_threads(self, weights: StoredWeights) -> int:
        """Threads that answer soonest, of those worth waking; more do not always read faster."""
        most = default_threads(self._profile)
        counts = range(1, most + 1)
        times = {n: self._speed(weights, "f16", n, True).typical_answer_s for n in counts}
        known = {n: seconds for n, seconds in times.items() if seconds is not None}
        return min(known, key=known.__getitem__, default=most)

    def can_open_with(self, kv_type: str) -> bool:
        """Whether the engine's table of graph nodes holds the graph with this cache type."""
        shape, head_dim = self._shape, max(self._shape.head_dims, default=0)
        return can_hold_graph(shape.arch, self._names, shape.n_expert_used, kv_type, head_dim)

    def can_divide_heads(self, kv_type: str) -> bool:
        """Whether the heads are whole blocks of this cache type."""
        return all(dim % KV_BLOCK[kv_type][0] == 0 for dim in self._shape.head_dims)

    def _memory(self, weights: StoredWeights, run: RunSettings) -> MemoryPhases:
        if self._features is None:  # the same in every recipe
            self._features = read_features(weights.tensors)
        kv_cache, compute = self._context(run.n_ctx, run.n_ubatch, run.n_threads, run.kv_type)
        output, shape = output_bytes(self._shape, run.n_users), self._shape
        if run.n_embedded:
            output += embedding_bytes(shape.n_vocab, shape.n_head, run.n_ctx, run.n_embedded)
        return memory_phases(
            self._split(weights, run.repack),
            use_mmap=run.use_mmap,
            kv_cache=run.n_users * kv_cache,
            compute=compute,
            output=output,
            engine=self._engine_bytes
            + metadata_bytes(shape.arch, len(weights.tensors), run.n_ubatch),
            n_tokens=run.n_users * run.n_ctx,
            server=run.server_bytes,
        ).with_margin()

    def _split_weights(self, weights: StoredWeights, repack: bool) -> WeightBytes:
        isa = self._profile.isa if repack else frozenset[str]()
        return split_weights(weights.tensors, weights.artifact_bytes, isa, self._shape)

    def _context_bytes(
        self, n_ctx: int, n_ubatch: int, n_threads: int, kv_type: str
    ) -> tuple[int, int]:
        """(KV cache of one user, compute buffers), which do not grow with the users
        (src/llama-kv-cache.cpp, n_stream).
        """
        assert self._features is not None
        return (
            kv_bytes(self._shape, n_ctx, kv_type, n_ubatch),
            compute_bytes(self._shape, self._features, n_ctx, n_ubatch, n_threads, kv_type),
        )

    def _estimate_speed(
        self,
        weights: StoredWeights,
        kv_type: str,
        n_threads: int,
        repack: bool,
        n_prompt: int = 512,
        depth: int = 256,
    ) -> SpeedEstimate:
        return estimate_speed(
            weights.tensors, self._shape, self._profile, n_threads=n_threads, kv_type=kv_type,
            repack=repack, n_prompt=n_prompt, depth=depth,
        )  # fmt: skip


@dataclass(frozen=True)
class AcceleratorSpeed:
    """`what` names the runtime and its weights; a figure without a basis in `speed` is None."""

    engine: EngineClass
    what: str
    speed: SpeedEstimate


def estimate_accelerator(
    weights: StoredWeights, shape: ModelShape, profile: DeviceProfile, run: RunSettings
) -> AcceleratorSpeed | None:
    """Estimate a run on the board's accelerator; None without one that has an engine class."""
    found = _find_engine(profile.accelerator) if profile.accelerator else None
    if found is None:
        return None
    engine, what, bits = found
    speed = estimate_speed(
        [
            tensor
            if bits is None or tensor.ggml_type == "F32"
            else replace(tensor, n_bytes=round(tensor.n_elements * bits / 8))
            for tensor in weights.tensors
        ],
        shape,
        profile,
        n_threads=run.n_threads,
        kv_type=run.kv_type,
        repack=False,
        engine=engine,
    )
    return AcceleratorSpeed(engine, what, speed)


def _find_engine(accelerator: Accelerator) -> tuple[EngineClass, str, float | None] | None:
    """(engine class, its name for people, the bits of its weights, None for the recipe's)."""
    if accelerator.kind == "cuda":
        old = float(accelerator.compute_capability or 7) < 7
        return OLD_CUDA if old else CUDA, "GPU (llama.cpp built with CUDA)", None
    # With their scales: 8 bits per channel, 4 bits in groups with 16-bit scales.
    if accelerator.kind == "npu" and "RKNPU" in accelerator.name:
        return RKLLM, "NPU (RKLLM, w8a8)", 8.05
    if accelerator.kind == "npu" and "Hexagon" in accelerator.name:
        return QNN, "NPU (QNN, w4a16)", 4.25
    return None
