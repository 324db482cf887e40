"""A GGUF header → `ModelShape`, for any architecture.

Sizes come from the `<arch>.*` keys. What the engine knows without an entry in the file (which
layers of an architecture have sliding windows, which are recurrent) is in the tables here, from
upstream's src/models/*.cpp, src/llama-hparams.cpp and src/llama-arch.cpp. An architecture that is
not in a table counts as full attention in every layer: the larger of the possible memory needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from boardfit.converters.families.decoder import MOST_LAYERS, active_parameters
from boardfit.converters.spec import TargetTensor
from boardfit.device_profiles.shape import LayerShape, ModelShape
from boardfit.edge.errors import InputError
from boardfit.edge.files.gguf import GgufHeader

# Every n-th layer is full attention where the file has a window but no pattern of its own.
_FULL_EVERY = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "olmo2": 4, "llama4": 4,
    "afmoe": 4,
}  # fmt: skip
_DEFAULT_WINDOW = {"gemma2": 4096, "llama4": 8192}
# The window is in the file, but the engine does not use it.
_WINDOW_UNUSED = {"llama", "phi3", "qwen2", "qwen3"}
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
# Every layer has both attention and a recurrent part.
_BOTH = {"falcon-h1"}
_FEED_FORWARD_ALONE = {"nemotron_h", "nemotron_h_moe"}
_FULL_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}


def shape_from_header(header: GgufHeader, tensors: Sequence[TargetTensor]) -> ModelShape:
    """Raises InputError when a size that every language model has is missing or impossible."""
    keys = _Keys(header)
    n_layer = keys.require("block_count")
    if n_layer > MOST_LAYERS:
        raise InputError(f"GGUF key {keys.arch}.block_count is {n_layer}; no model has that many")
    n_layer -= min(n_layer - 1, keys.integer("nextn_predict_layers") or 0)  # skipped when reading
    read = [tensor for tensor in tensors if not tensor.name.startswith(f"blk.{n_layer}.")]
    n_embd = keys.require("embedding_length")
    n_vocab = _n_vocab(header, keys, tensors)
    n_expert = keys.integer("expert_count") or 0
    n_used = keys.integer("expert_used_count") or 0
    heads = keys.per_layer("attention.head_count", n_layer, 0)
    return ModelShape(
        arch=header.arch,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=max(heads),
        n_ff=max(keys.per_layer("feed_forward_length", n_layer, 0)),
        n_vocab=n_vocab,
        n_ctx_train=keys.require("context_length"),
        layers=_layers(keys, n_layer, n_embd, heads),
        n_params=sum(tensor.n_elements for tensor in tensors),
        n_params_active=active_parameters(read, n_expert, n_used, n_embd),
        n_expert=n_expert,
        n_expert_used=n_used,
        tied_embeddings=all(tensor.name != "output.weight" for tensor in tensors),
    )


class _Keys:
    """Typed access to the `<arch>.*` keys of a header."""

    def __init__(self, header: GgufHeader) -> None:
        self.arch, self._header = header.arch, header

    def integer(self, name: str) -> int | None:
        value = self._header.integer(f"{self.arch}.{name}")
        if value is not None and not 0 <= value < 2**31:
            raise InputError(f"GGUF key {self.arch}.{name} is {value}; expected a size")
        return value

    def require(self, name: str) -> int:
        value = self.integer(name)
        if not value:
            raise InputError(
                f"GGUF key {self.arch}.{name} is {'missing' if value is None else 'zero'}; "
                "every language model has it",
                next_step="the file may hold something else (a vision part, an adapter, only a "
                "vocabulary)",
            )
        return value

    def raw(self, name: str) -> object:
        return self._header.get(f"{self.arch}.{name}")

    def per_layer(self, name: str, n_layer: int, default: int) -> list[int]:
        """One value per layer, from a number or an array of at least `n_layer` numbers."""
        value = self.raw(name)
        if not isinstance(value, list):
            number = self.integer(name)
            return [default if number is None else number] * n_layer
        numbers = [int(item) for item in value if isinstance(item, int)]
        if len(numbers) != len(value) or len(numbers) < n_layer or min(numbers) < 0:
            raise InputError(
                f"GGUF key {self.arch}.{name} is not a size for each of {n_layer} layers"
            )
        return numbers[:n_layer]


def _layers(keys: _Keys, n_layer: int, n_embd: int, heads: Sequence[int]) -> tuple[LayerShape, ...]:
    has_kv_heads = keys.raw("attention.head_count_kv") is not None
    kv_heads = keys.per_layer("attention.head_count_kv", n_layer, 0) if has_kv_heads else heads
    default_dim = n_embd // max(1, max(heads))
    dim_k = keys.integer("attention.key_length") or default_dim
    dim_v = keys.integer("attention.value_length") or default_dim
    windows = _windows(keys, n_layer)
    recurrent = _recurrent_layers(keys, kv_heads)
    state = _state_values(keys, n_embd)
    # Source: n_layer_kv_from_start in src/models/gemma3n.cpp and src/models/gemma4.cpp.
    n_shared = keys.integer("attention.shared_kv_layers") or 0
    n_own = 20 if keys.arch == "gemma3n" else n_layer - n_shared
    layers = []
    for i in range(n_layer):
        has_kv = not recurrent[i] or keys.arch in _BOTH
        sliding = windows[i] is not None
        layers.append(
            LayerShape(
                n_head_kv=kv_heads[i] if has_kv else 0,
                head_dim_k=(sliding and keys.integer("attention.key_length_swa")) or dim_k,
                head_dim_v=(sliding and keys.integer("attention.value_length_swa")) or dim_v,
                window=windows[i] if has_kv else None,
                state_values=state if recurrent[i] else 0,
                shares_kv=i >= n_own,
            )
        )
    return tuple(layers)


def _windows(keys: _Keys, n_layer: int) -> list[int | None]:
    """The window of each layer: the pattern in the file, else the engine's own for the arch."""
    window = keys.integer("attention.sliding_window")
    if window is None:
        window = _DEFAULT_WINDOW.get(keys.arch)
    if not window or keys.arch in _WINDOW_UNUSED:
        return [None] * n_layer
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= n_layer:
        return [window if pattern[i] else None for i in range(n_layer)]
    every = keys.integer("attention.sliding_window_pattern") if pattern is not None else None
    every = every or _FULL_EVERY.get(keys.arch)
    if not every:
        return [None] * n_layer
    return [window if i % every < every - 1 else None for i in range(n_layer)]


def _recurrent_layers(keys: _Keys, kv_heads: Sequence[int]) -> list[bool]:
    n_layer = len(kv_heads)
    if keys.arch in _RECURRENT or keys.arch in _BOTH:
        return [True] * n_layer
    given = keys.raw("attention.recurrent_layers")
    if isinstance(given, list) and len(given) >= n_layer:
        return [bool(layer) for layer in given[:n_layer]]
    if keys.arch in _FULL_INTERVAL:
        every = keys.integer("full_attention_interval") or _FULL_INTERVAL[keys.arch]
        return [(i + 1) % every != 0 for i in range(n_layer)]
    # Layers of Nemotron-H may be a feed-forward part alone.
    widths = keys.per_layer("feed_forward_length", n_layer, 0)
    alone = keys.arch in _FEED_FORWARD_ALONE
    return [kv == 0 and not (alone and ff) for kv, ff in zip(kv_heads, widths, strict=True)]


def _state_values(keys: _Keys, n_embd: int) -> int:
    """Float32 values of one recurrent layer: `n_embd_r + n_embd_s` of src/llama-hparams.cpp."""
    head = keys.integer("wkv.head_size") or 0
    if head:
        return (keys.integer("token_shift_count") or 2) * n_embd + n_embd * head
    cache = keys.integer("shortconv.l_cache") or 0
    if cache:
        return n_embd * (cache - 1)
    inner, state = keys.integer("ssm.inner_size") or 0, keys.integer("ssm.state_size") or 0
    groups, kernel = keys.integer("ssm.group_count") or 0, keys.integer("ssm.conv_kernel") or 0
    return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner


def _n_vocab(header: GgufHeader, keys: _Keys, tensors: Sequence[TargetTensor]) -> int:
    embedding = next((t for t in tensors if t.name == "token_embd.weight"), None)
    if embedding is not None:
        return embedding.n_rows
    tokens = header.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else keys.require("vocab_size")
