"""Estimate the memory of a GGUF model without a plan, from its header: weights as they lie in the
file, KV cache, compute buffers, and the engine with its interpreter.
"""

import struct

from boardfit.device_profiles.cost.memory import KV_BLOCK
from boardfit.device_profiles.shape import find_lazy_table, is_behind
from boardfit.edge.disk.opened_file import Source
from boardfit.edge.engines.settings import EngineSettings
from boardfit.edge.files.gguf import GgufArray, GgufHeader
from boardfit.edge.files.gguf.purpose import ENCODERS
from boardfit.edge.files.kind import open_regular
from boardfit.edge.units import MIB

#: Interpreter, library and its tables; measured at 25 to 35 MiB.
_PROCESS_BYTES = 40 * MIB
#: Architectures whose every layer keeps the whole context.
_PLAIN = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "granite", "smollm3")
#: Keys of layers that remember in another way: recurrent, convolutional, compressed.
_OTHER_MEMORY = ("ssm.", "wkv", "shortconv", "time_mix", "attention.kv_lora_rank", "kda")


def _cache_bytes(n_values: int, kv_type: str) -> float:
    n, n_bytes = KV_BLOCK[kv_type]
    return n_values * n_bytes / n


def estimate_bytes(path: Source, header: GgufHeader, n_ctx: int, settings: EngineSettings) -> int:
    """Memory that the model will take, from its header alone: an estimate, within about 10 % for
    dense models. Sliding windows are counted as full.
    """
    arch = header.arch
    n_layer = header.integer(f"{arch}.block_count") or 0
    n_embd = header.integer(f"{arch}.embedding_length") or 0
    kv = n_ctx * cache_bytes_per_token(path, header, settings.kv_type)
    feed_forward = read_per_layer(path, header, f"{arch}.feed_forward_length", n_layer)
    n_ff = max(feed_forward, default=4 * n_embd)
    # Live at once in the widest part of the graph: gate, up and their product, and the residual.
    compute = settings.n_ubatch * (3 * n_ff + 4 * n_embd) * 4
    return loaded_bytes(header) + int(kv) + compute + _PROCESS_BYTES


def least_bytes(path: Source, header: GgufHeader, n_ctx: int, settings: EngineSettings) -> int:
    """Memory that the model takes at the least: weights, and the KV cache where it is plain."""
    arch = header.arch
    if arch in ENCODERS:
        return header.tensor_bytes
    cells = n_ctx
    if arch not in _PLAIN:
        # Layers whose cache is smaller, or absent: only the library knows which they are.
        if any(key.removeprefix(f"{arch}.").startswith(_OTHER_MEMORY) for key in header.kv):
            return loaded_bytes(header)
        window = header.get(f"{arch}.attention.sliding_window")
        if isinstance(window, int) and window > 0 and not settings.swa_full:
            cells = min(n_ctx, window)
    heads_kv, width = _read_cache_heads(path, header)
    cache = cells * _cache_bytes(sum(heads_kv) * width, settings.kv_type)
    return loaded_bytes(header) + int(cache)


def cache_bytes_per_token(path: Source, header: GgufHeader, kv_type: str) -> float:
    """Bytes of KV cache that one token takes in all layers. Sliding windows are counted as full."""
    n_layer = header.integer(f"{header.arch}.block_count") or 0
    heads_kv, width = _read_cache_heads(path, header)
    return _cache_bytes(sum(heads_kv or [1] * n_layer) * width, kv_type)


def shelf_bytes(path: Source, header: GgufHeader, settings: EngineSettings) -> int:
    """What one more sequence in a context takes, at most: a row of logits, states of recurrent
    layers, cells of sliding windows.
    """
    window = header.integer(f"{header.arch}.attention.sliding_window") or 0
    cells = 0 if settings.swa_full else window
    tokens = header.get("tokenizer.ggml.tokens")
    n_vocab = len(tokens) if isinstance(tokens, GgufArray) else 0
    per_token = cache_bytes_per_token(path, header, settings.kv_type)
    return state_bytes(header) + int(cells * per_token) + 2 * 4 * n_vocab


def state_bytes(header: GgufHeader) -> int:
    """What the recurrent layers keep of one sequence, at most: all layers are counted as such
    (llama-hparams.cpp, n_embd_r and n_embd_s). 0 where there are none.
    """

    def number(key: str) -> int:
        return header.integer(f"{header.arch}.{key}") or 0

    n_embd, d_inner, d_state = (
        number(key) for key in ("embedding_length", "ssm.inner_size", "ssm.state_size")
    )
    channels = d_inner + 2 * max(1, number("ssm.group_count")) * d_state
    state = max(0, number("ssm.conv_kernel") - 1) * channels + d_inner * d_state
    state += max(0, number("shortconv.l_cache") - 1) * n_embd
    state += n_embd * (2 + number("wkv.head_size")) if number("wkv.head_size") else 0
    state += (number("kda.head_dim") + 9) * number("kda.head_dim") * number("attention.head_count")
    return 4 * state * count_layers(header)


def loaded_bytes(header: GgufHeader) -> int:
    """Weights that the engine loads: not next-token blocks, nor a table of which it reads rows."""
    n_layer = count_layers(header)
    return sum(
        tensor.nbytes
        for tensor in header.tensors
        if not is_behind(tensor.name, n_layer) and tensor.name != find_lazy_table(header.arch)
    )


def count_layers(header: GgufHeader) -> int:
    """Layers that a token is read through: all blocks but those of next-token prediction."""
    arch = header.arch
    n_blocks = header.integer(f"{arch}.block_count") or 0
    return max(0, n_blocks - (header.integer(f"{arch}.nextn_predict_layers") or 0))


def _read_cache_heads(path: Source, header: GgufHeader) -> tuple[list[int], int]:
    """The cached heads of each layer with a cache of its own, and the values that one head caches
    for a token, at the least. No heads where the header names none.
    """
    arch = header.arch
    n_blocks = header.integer(f"{arch}.block_count") or 0
    heads = read_per_layer(path, header, f"{arch}.attention.head_count", n_blocks)
    heads_kv = read_per_layer(path, header, f"{arch}.attention.head_count_kv", n_blocks) or heads
    n_shared = header.integer(f"{arch}.attention.shared_kv_layers") or 0
    heads_kv = heads_kv[: max(0, count_layers(header) - n_shared)]
    every = header.integer(f"{arch}.full_attention_interval") or 1
    heads_kv = heads_kv[every - 1 :: every]
    head_dim = (header.integer(f"{arch}.embedding_length") or 0) // max([*heads, 1])
    width = 0
    for kind in ("key", "value"):
        full = header.integer(f"{arch}.attention.{kind}_length") or head_dim
        width += min(full, header.integer(f"{arch}.attention.{kind}_length_swa") or full)
    return heads_kv, width


def most_heads(path: Source, header: GgufHeader) -> int:
    """Attention heads of the layer with most; at least 1."""
    n_layer = header.integer(f"{header.arch}.block_count") or 0
    return max(
        read_per_layer(path, header, f"{header.arch}.attention.head_count", n_layer), default=1
    )


def read_per_layer(path: Source, header: GgufHeader, key: str, n_layer: int) -> list[int]:
    """One number for all layers, or an array of 32-bit numbers, one per layer; else empty."""
    value = header.get(key)
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int):
        return [value] * n_layer
    if isinstance(value, GgufArray) and value.item_type in ("u32", "i32") and len(value) == n_layer:
        file, _ = open_regular(path)
        with file:
            file.seek(value.offset)
            return list(struct.unpack(f"<{n_layer}I", file.read(value.nbytes)))
    return []
