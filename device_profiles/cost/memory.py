"""Bytes that a run takes, by kind. Pure functions of a model's shape and the engine's settings."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from boardfit.device_profiles.cost.kernels import is_repacked
from boardfit.device_profiles.shape import ModelShape, is_behind

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
_PAGE_BYTES = 4096
# Architectures that make the output matrix before the embedding (src/models/gemma4.cpp).
_HEAD_FIRST = ("gemma3n", "gemma4")
VOCAB_MERGE_BYTES = 145


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: `n_matrices` (experts) of `n_rows` rows (ggml's ne[1])."""

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

    `mapped` is read from the file while loading, `repacked` are copies in anonymous memory, whose
    `repacked_source` is not read again; `largest_repacked` is the staging of loading without a
    mapping. `kept_mapped` stay when the model is loaded, `tensors` are loaded. A table of `lazy`
    bytes in rows of `lazy_row` is read when a token needs it.
    """

    mapped: int
    repacked: int
    repacked_source: int
    largest_repacked: int
    kept_mapped: int
    tensors: int
    lazy: int = 0
    lazy_row: int = 0

    def touched(self, n_tokens: int) -> int:
        """Resident bytes of the lazily read table: a row and a page for each token."""
        return min(self.lazy, n_tokens * (self.lazy_row + _PAGE_BYTES))


@dataclass(frozen=True)
class MemoryPhases:
    """Bytes of a process: while the model is loading, and with the context full. `anonymous` is
    what only this process has, `total` what is resident, files included. `terms` are the parts of
    both.
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
    """What must be free beyond `n_bytes` predicted: 1/128. Page tables take 1/512, predictions are
    up to 0.4 % too little (docs/validation/memory.txt), and the last pages cannot all be used: a
    run with 0.3 % to spare read its weights 3.6 times over, the same with 0.6 % once.
    """
    return n_bytes // 128


def pad(n: int, to: int) -> int:
    return -(-n // to) * to


def is_matmul_weight(name: str) -> bool:
    """Whether a GGUF tensor is multiplied (and so may be repacked), by its name. Source:
    src/llama-arch.cpp, LLM_TENSOR_INFOS.
    """
    if not name.endswith(".weight") or "norm" in name:
        return False
    base = name.split(".")[-2]
    tables = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
    factors = ("rope_freqs", "rope_factors_long", "rope_factors_short")
    return base not in (*tables, *factors, "shortconv_conv", "ssm_conv1d")


def weight_bytes(
    tensors: Iterable[StoredTensor],
    artifact_bytes: int,
    isa: Set[str],
    *,
    tied: bool,
    n_layer: int | None = None,
    lazy_table: str | None = None,
    head_first: bool = False,
) -> WeightBytes:
    """Weights in memory. A tied head is loaded a second time as the output matrix: its repacked
    copy stands beside the mapped embedding; with `head_first`, it is two tensors in any case.
    Tensors behind layer `n_layer` are not loaded. Source: src/llama-model-loader.cpp
    (create_tensor, TENSOR_SKIP; lazy_read), src/llama-model.cpp (make_cpu_buft_list).
    """
    repacked = source = largest = total = lazy = lazy_row = 0
    # Before the first and behind the last tensor that stays mapped, the mapping is given up.
    leading = trailing = 0
    any_kept = False
    mapped = 0  # of all tensors, but for the lazily read one
    for tensor in tensors:
        if tensor.name == lazy_table:
            lazy, lazy_row = tensor.n_bytes, tensor.n_bytes // tensor.n_rows
            any_kept, trailing = True, 0
            continue
        mapped += tensor.n_bytes
        is_loaded = n_layer is None or not is_behind(tensor.name, n_layer)
        total += tensor.n_bytes if is_loaded else 0
        is_head = tied and tensor.name == "token_embd.weight"
        matmul = is_head or is_matmul_weight(tensor.name)
        moves = matmul and tensor.n_rows > 1 and is_repacked(tensor.ggml_type, tensor.n_rows, isa)
        if is_head and head_first and not moves:
            total += tensor.n_bytes
        if moves and is_loaded:
            repacked += tensor.n_bytes
            source += 0 if is_head else tensor.n_bytes
            largest = max(largest, tensor.n_bytes)
        if is_loaded and (not moves or is_head):
            any_kept, trailing = True, 0
        elif any_kept:
            trailing += tensor.n_bytes
        else:
            leading += tensor.n_bytes
    return WeightBytes(
        artifact_bytes - lazy,
        repacked,
        source,
        largest,
        kept_mapped=mapped - leading - trailing,
        tensors=total,
        lazy=lazy,
        lazy_row=lazy_row,
    )


def split_weights(
    tensors: Iterable[StoredTensor], artifact_bytes: int, isa: Set[str], shape: ModelShape
) -> WeightBytes:
    return weight_bytes(
        tensors,
        artifact_bytes,
        isa,
        tied=shape.tied_embeddings,
        n_layer=shape.n_layer,
        lazy_table=shape.lazy_table,
        head_first=shape.arch in _HEAD_FIRST,
    )


def memory_phases(
    weights: WeightBytes,
    *,
    use_mmap: bool,
    kv_cache: int,
    compute: int,
    output: int,
    engine: int,
    n_tokens: int = 0,
    server: int = 0,
) -> MemoryPhases:
    """The two phases of a run, `n_tokens` of which touch rows of a lazily read table.

    A tensor's staging is freed before the next one is read; then what lies before and behind all
    mapped tensors is unmapped, and the KV cache is zeroed. Compute buffers take pages as they are
    written (src/llama-model-loader.cpp, load_all_data; src/llama-kv-cache.cpp).
    """
    copied = 0 if use_mmap else weights.tensors - weights.repacked_source
    staging = 0 if use_mmap else weights.largest_repacked
    context = kv_cache + compute + output
    anonymous = engine + server + copied + weights.repacked
    mapped = weights.mapped if use_mmap else 0
    kept = weights.kept_mapped if use_mmap else 0
    rows = weights.touched(n_tokens)
    # The whole mapping is populated at once, but for a file with a lazily read table: there, what
    # is repacked is read first, and the rest when it is needed (src/llama-mmap.cpp).
    read_first = min(mapped, weights.repacked_source) if weights.lazy else mapped
    return MemoryPhases(
        loading_anonymous=anonymous + max(staging, kv_cache),
        loading_total=anonymous
        + max(staging + read_first, kv_cache + min(kept, read_first))
        + PROGRAM_FILE_BYTES,
        running_anonymous=anonymous + context,
        running_total=anonymous + context + kept + rows + PROGRAM_FILE_BYTES,
        terms={
            "weights_mapped": mapped,
            "table_rows": rows,
            "weights_kept_mapped": kept,
            "weights_copied": copied,
            "weights_repacked": weights.repacked,
            "load_staging": staging,
            "kv_cache": kv_cache,
            "compute_buffers": compute,
            "output_buffer": output,
            "engine_and_interpreter": engine,
            "server": server,
            "program_files": PROGRAM_FILE_BYTES,
        },
    )


def kv_cells(n_ctx: int, window: int | None, n_ubatch: int) -> int:
    """Tokens that one layer's cache holds, padded to 256: the context, or a window and one
    micro-batch. Source: src/llama-context.cpp (n_ctx), src/llama-kv-cache-iswa.cpp (size_swa).
    """
    n_ctx = pad(n_ctx, 256)
    if window is None:
        return n_ctx
    return pad(min(n_ctx, window + n_ubatch), 256)


def row_bytes(n_values: int, kv_type: str) -> int:
    """Bytes of one token's K or V of one layer. Raises ValueError if blocks do not divide it."""
    block, size = KV_BLOCK[kv_type]
    if n_values % block:
        raise ValueError(f"KV type {kv_type} stores blocks of {block}, rows here have {n_values}")
    return n_values // block * size


def kv_bytes(shape: ModelShape, n_ctx: int, kv_type: str, n_ubatch: int = 512) -> int:
    """KV cache and recurrent states of one sequence, in bytes.

    Attention layers: cells × n_head_kv × (head_dim_k + head_dim_v) in `kv_type`
    (src/llama-kv-cache.cpp). Recurrent: float32 states (src/llama-memory-recurrent.cpp).
    """
    total = 0
    for layer in shape.layers:
        if layer.has_cache:
            cells = kv_cells(n_ctx, layer.window, n_ubatch)
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
    """Logits as float32 (src/llama-context.cpp, output_reserve), and 12 bytes per token for the
    sampler's candidates (include/llama.h, llama_token_data).
    """
    return shape.n_vocab * (4 * n_outputs + 12)


#: Most bytes of logits in one step of a decoder that makes vectors.
EMBEDDING_LOGIT_BYTES = 64 * 1024**2


def embedding_rows(n_vocab: int, n_ctx: int, n_ubatch: int, *, at_once: bool) -> int:
    """Tokens that go through an embedding model in one step. An encoder reads a text at once."""
    few = max(1, EMBEDDING_LOGIT_BYTES // (4 * max(1, n_vocab)))
    return n_ctx if at_once else min(n_ctx, n_ubatch, few)


def embedding_bytes(n_vocab: int, n_head: int, n_ctx: int, n_rows: int) -> int:
    """What vectors take beside a decoder's memory.

    The engine keeps logits of every token of a step (src/llama-context.cpp, output_reserve). In an
    encoder the scores of all pairs of tokens exist at once, and masks of two kinds. The sum came
    out 2 to 7 % above what was measured (BERT, NomicBert, EmbeddingGemma, Qwen3).
    """
    logits = 4 * n_vocab * n_rows
    return logits + (4 * n_ctx * n_ctx * (n_head + 2) if n_rows >= n_ctx else logits)


def engine_anonymous_bytes(shape: ModelShape, n_merges: int = 0) -> int:
    """Interpreter, engine and vocabulary: what is there regardless of the context."""
    vocabulary = VOCAB_ENTRY_BYTES * shape.n_vocab + VOCAB_MERGE_BYTES * n_merges
    return ENGINE_BASE_BYTES + vocabulary
