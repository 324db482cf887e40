"""Bytes that a run takes, by kind. Pure functions of a model's shape and the engine's settings."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from boardfit.device_profiles.cost.kernels import is_repacked
from boardfit.device_profiles.shape import ModelShape

# KV cache type → (values per block, bytes per block). Source: ggml/src/ggml-common.h.
KV_BLOCK: dict[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}

# Anonymous memory of the process without model and vocabulary. Measured on Linux x86-64 with Python
# 3.11 and the engine's libraries of llama-cpp-python 0.3.36: 15 MiB for Python, our runtime and the
# libraries, 7 MiB for click and jinja2; the rest is graph metadata, threads and the session.
ENGINE_BASE_BYTES = 22 * 1024**2
# Resident pages of program files: Python, the engine's libraries, the C library. Measured as above.
PROGRAM_FILE_BYTES = int(16.5 * 1024**2)
# Vocabulary in the engine, per entry and per BPE merge (src/llama-vocab.cpp: two hash maps,
# strings, ranks). Measured as the growth of anonymous memory over six vocabularies of 32,000 to
# 262,000 entries and up to 515,000 merges (ggml-vocab-*.gguf): 152 bytes for an entry without
# merges, 117 to 187 for a merge.
VOCAB_ENTRY_BYTES = 152
VOCAB_MERGE_BYTES = 145


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the artifact.

    `n_rows` is the number of rows of one matrix (ggml's ne[1]). `n_matrices` is how many are
    stacked (experts). All rows are their product.
    """

    name: str
    ggml_type: str
    n_per_row: int
    n_rows: int
    n_matrices: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return self.n_per_row * self.n_rows * self.n_matrices


@dataclass(frozen=True)
class WeightBytes:
    """Places of the weights in memory.

    `mapped` is read from the file while loading, `repacked` are copies in anonymous memory.
    `repacked_source` is the part of the mapping that is not read again. `largest_repacked` is the
    staging buffer that loading without a mapping needs. `kept_mapped` of the mapping stay when the
    model is loaded; `tensors` is the file without its header.
    """

    mapped: int
    repacked: int
    repacked_source: int
    largest_repacked: int
    kept_mapped: int
    tensors: int


@dataclass(frozen=True)
class MemoryPhases:
    """Bytes of a process: while the model is loading, at most, and with the context full.

    `anonymous` counts what only this process has; `total` what is resident, files included, of
    which the kernel may drop and read again what is short. `terms` are the parts of both.
    """

    loading_anonymous: int
    loading_total: int
    running_anonymous: int
    running_total: int
    terms: dict[str, int]

    def with_margin(self) -> MemoryPhases:
        """The same with what a board must have beyond it for the run to be at ease."""
        loading, running = self.loading_total, self.running_total
        return MemoryPhases(
            self.loading_anonymous,
            loading + margin_bytes(loading),
            self.running_anonymous,
            running + margin_bytes(running),
            {**self.terms, "margin": margin_bytes(self.peak_total)},
        )

    @property
    def peak_anonymous(self) -> int:
        return max(self.loading_anonymous, self.running_anonymous)

    @property
    def peak_total(self) -> int:
        return max(self.loading_total, self.running_total)


def margin_bytes(n_bytes: int) -> int:
    """What must be free beyond `n_bytes` predicted: 1/128. Page tables take 1/512, predictions of
    the total are up to 0.4 % too little (docs/validation/memory.txt), and the last pages cannot all
    be used: weights that the next token needs are evicted first. A run with 0.3 % to spare read its
    weights 3.6 times over, the same with 0.6 % once.
    """
    return n_bytes // 128


def pad(n: int, to: int) -> int:
    """`n` rounded up to a multiple of `to`."""
    return -(-n // to) * to


def is_matmul_weight(name: str) -> bool:
    """Whether a GGUF tensor is multiplied (and so may be repacked), by its name.

    The token embedding is only looked up; norms, biases and 1-D factors are added or scaled.
    Source: src/llama-arch.cpp, LLM_TENSOR_INFOS.
    """
    if not name.endswith(".weight") or "norm" in name:
        return False
    base = name.split(".")[-2]
    return base not in (
        "token_embd",
        "position_embd",
        "token_types",
        "rope_freqs",
        "shortconv_conv",
        "rope_factors_long",
        "rope_factors_short",
        "ssm_conv1d",
        "per_layer_token_embd",
    )


def weight_bytes(
    tensors: Iterable[StoredTensor], artifact_bytes: int, isa: Set[str], *, tied: bool
) -> WeightBytes:
    """Weights in memory. A tied head is loaded a second time as the output matrix, so that its
    repacked copy stands beside the mapped embedding. Source: src/llama-model-loader.cpp
    (create_tensor, "tensor is duplicated"), src/llama-model.cpp (make_cpu_buft_list).
    """
    repacked = source = largest = total = 0
    # Before the first and behind the last tensor that stays mapped, the mapping is given up.
    leading = trailing = 0
    any_kept = False
    for tensor in tensors:
        total += tensor.n_bytes
        is_head = tied and tensor.name == "token_embd.weight"
        matmul = is_head or is_matmul_weight(tensor.name)
        moves = matmul and tensor.n_rows > 1 and is_repacked(tensor.ggml_type, tensor.n_rows, isa)
        if moves:
            repacked += tensor.n_bytes
            source += 0 if is_head else tensor.n_bytes
            largest = max(largest, tensor.n_bytes)
        if not moves or is_head:
            any_kept, trailing = True, 0
        elif any_kept:
            trailing += tensor.n_bytes
        else:
            leading += tensor.n_bytes
    kept = total - leading - trailing
    return WeightBytes(artifact_bytes, repacked, source, largest, kept, total)


def memory_phases(
    weights: WeightBytes,
    *,
    use_mmap: bool,
    kv_cache: int,
    compute: int,
    output: int,
    engine: int,
) -> MemoryPhases:
    """The two phases of a run. Weights come first, and a tensor's staging is freed before the next
    one is read; then what lies before and behind all mapped tensors is unmapped, and the KV cache
    is made and zeroed. Compute buffers take pages as they are written to, in the first
    micro-batches (src/llama-model-loader.cpp, load_all_data; src/llama-kv-cache.cpp).
    """
    copied = 0 if use_mmap else weights.tensors - weights.repacked_source
    staging = 0 if use_mmap else weights.largest_repacked
    context = kv_cache + compute + output
    anonymous = engine + copied + weights.repacked
    mapped = weights.mapped if use_mmap else 0
    kept = weights.kept_mapped if use_mmap else 0
    return MemoryPhases(
        loading_anonymous=anonymous + max(staging, kv_cache),
        loading_total=anonymous + max(staging + mapped, kv_cache + kept) + PROGRAM_FILE_BYTES,
        running_anonymous=anonymous + context,
        running_total=anonymous + context + kept + PROGRAM_FILE_BYTES,
        terms={
            "weights_mapped": mapped,
            "weights_kept_mapped": kept,
            "weights_copied": copied,
            "weights_repacked": weights.repacked,
            "load_staging": staging,
            "kv_cache": kv_cache,
            "compute_buffers": compute,
            "output_buffer": output,
            "engine_and_interpreter": engine,
            "program_files": PROGRAM_FILE_BYTES,
        },
    )


def kv_cells(n_ctx: int, window: int | None, n_ubatch: int, *, swa_full: bool = False) -> int:
    """Tokens that one layer's cache holds. The context is padded to 256; a sliding-window layer
    keeps its window and one micro-batch, padded to 256, unless `swa_full`.

    Source: src/llama-context.cpp (n_ctx), src/llama-kv-cache-iswa.cpp (size_swa).
    """
    n_ctx = pad(n_ctx, 256)
    if window is None or swa_full:
        return n_ctx
    return pad(min(n_ctx, window + n_ubatch), 256)


def row_bytes(n_values: int, kv_type: str) -> int:
    """Bytes of one token's K or V of one layer. Raises ValueError if blocks do not divide it."""
    block, size = KV_BLOCK[kv_type]
    if n_values % block:
        raise ValueError(f"KV type {kv_type} stores blocks of {block}, rows here have {n_values}")
    return n_values // block * size


def kv_bytes(
    shape: ModelShape, n_ctx: int, kv_type: str, n_ubatch: int = 512, *, swa_full: bool = False
) -> int:
    """KV cache and recurrent states of one sequence, in bytes. A layer that shares another's cache
    adds none.

    Attention layers: cells × n_head_kv × (head_dim_k + head_dim_v) in `kv_type`
    (src/llama-kv-cache.cpp, ggml_new_tensor_3d of cache_k/cache_v). Recurrent layers: float32
    states of fixed size (src/llama-memory-recurrent.cpp).
    """
    total = 0
    for layer in shape.layers:
        if layer.has_cache:
            cells = kv_cells(n_ctx, layer.window, n_ubatch, swa_full=swa_full)
            total += cells * row_bytes(layer.n_head_kv * layer.head_dim_k, kv_type)
            total += cells * row_bytes(layer.n_head_kv * layer.head_dim_v, kv_type)
        total += 4 * layer.state_values
    return total


def kv_bytes_read(shape: ModelShape, depth: int, kv_type: str) -> int:
    """Bytes of KV cache and states that one decoded token reads at a context depth of `depth`."""
    total = 0
    for layer in shape.layers:
        if layer.n_head_kv:
            cells = depth if layer.window is None else min(depth, layer.window)
            values = layer.n_head_kv * (layer.head_dim_k + layer.head_dim_v)
            block, size = KV_BLOCK[kv_type]
            total += cells * values * size // block
        total += 4 * layer.state_values
    return total


def output_bytes(shape: ModelShape, n_outputs: int = 1) -> int:
    """Logits handed to the sampler, float32 (src/llama-context.cpp, output_reserve), and the
    sampler's candidate array of 12 bytes per token (include/llama.h, llama_token_data).
    """
    return shape.n_vocab * (4 * n_outputs + 12)


def engine_anonymous_bytes(shape: ModelShape, n_merges: int = 0) -> int:
    """Interpreter, engine and vocabulary: what is there regardless of the context."""
    vocabulary = VOCAB_ENTRY_BYTES * shape.n_vocab + VOCAB_MERGE_BYTES * n_merges
    return ENGINE_BASE_BYTES + vocabulary


def engine_bytes(shape: ModelShape, n_merges: int = 0) -> int:
    """As `engine_anonymous_bytes`, with the resident pages of program files."""
    return engine_anonymous_bytes(shape, n_merges) + PROGRAM_FILE_BYTES
