"""GGUF metadata → `ModelShape`, for any architecture.

Sizes come from the `<arch>.*` keys. What the engine knows without an entry in the file (which
layers of an architecture have sliding windows, which are recurrent) is in `architectures.toml`. One
that is in no table there counts as full attention in every layer, and the shape is marked: its
`memory_known` is false.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gguf import MODEL_ARCH_NAMES

from boardfit.converters.spec import TargetTensor
from boardfit.device_profiles.shape import LayerShape, ModelShape, is_behind
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError
from boardfit.edge.files.gguf.purpose import ENCODERS

# Far above every published model; more is a damaged file, and would cost time before it is noticed.
MOST_LAYERS = 4096
_DATA = load_toml("boardfit.converters.families", "architectures.toml")
_SETS = {key: frozenset(names) for key, names in _DATA.items() if isinstance(names, list)}
_FULL_EVERY: dict[str, int] = _DATA["full_every"]
_DEFAULT_WINDOW: dict[str, int] = _DATA["default_window"]
_FIXED_WINDOW: dict[str, int] = _DATA["fixed_window"]
_FULL_INTERVAL: dict[str, int] = _DATA["full_interval"]
#: Architectures whose caches are known here.
KNOWN_ARCHITECTURES = set(_FULL_INTERVAL).union(
    *(_SETS[key] for key in ("attention", "no_cache", "recurrent", "both", "no_heads"))
)

#: Every name that the engine loads.
ENGINE_ARCHITECTURES = KNOWN_ARCHITECTURES.union(MODEL_ARCH_NAMES.values(), _SETS["engine_only"])


def find_shape(
    arch: str, entries: Mapping[str, Any], tensors: Sequence[TargetTensor]
) -> ModelShape:
    """The shape of a model with these metadata entries. Raises InputError when a size that every
    language model has is missing or impossible.
    """
    keys = _Keys(arch, entries)
    n_blocks = keys.require("block_count")
    if n_blocks > MOST_LAYERS:
        raise InputError(f"GGUF key {keys.arch}.block_count is {n_blocks}; no model has that many")
    n_nextn = keys.integer("nextn_predict_layers") or 0
    if n_nextn >= n_blocks:
        raise InputError(
            f"GGUF key {keys.arch}.nextn_predict_layers is {n_nextn}, of {n_blocks} blocks in all;"
            " at least one must read tokens"
        )
    n_layer, n_embd = n_blocks - n_nextn, keys.require("embedding_length")
    n_expert = keys.integer("expert_count") or 0
    n_used = max(keys.per_layer("expert_used_count", n_blocks, 0))
    heads = keys.per_layer("attention.head_count", n_blocks, 0)
    read = [tensor for tensor in tensors if not is_behind(tensor.name, n_layer)]
    return ModelShape(
        arch=arch,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=max(heads),
        n_ff=max(keys.per_layer("feed_forward_length", n_blocks, 0)),
        n_vocab=_n_vocab(keys, tensors),
        n_ctx_train=keys.require("context_length"),
        layers=_layers(keys, n_layer, n_blocks, n_embd, heads),
        n_params=sum(tensor.n_elements for tensor in tensors),
        n_params_active=active_parameters(read, n_expert, n_used, n_embd),
        n_expert=n_expert,
        n_expert_used=n_used,
        tied_embeddings=all(tensor.name != "output.weight" for tensor in tensors),
        memory_known=keys.arch in KNOWN_ARCHITECTURES,
    )


class _Keys:
    """Typed access to the `<arch>.*` keys."""

    def __init__(self, arch: str, entries: Mapping[str, Any]) -> None:
        self.arch, self.entries = arch, entries

    def integer(self, name: str) -> int | None:
        value = self.raw(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(
                f"GGUF key {self.arch}.{name}: expected an integer, got {type(value).__name__}"
            )
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
        return self.entries.get(f"{self.arch}.{name}")

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


def _layers(
    keys: _Keys, n_layer: int, n_blocks: int, n_embd: int, heads: Sequence[int]
) -> tuple[LayerShape, ...]:
    """What each layer keeps. A block of next-token prediction follows where it has a cache."""
    has_kv_heads = keys.raw("attention.head_count_kv") is not None
    kv_heads = keys.per_layer("attention.head_count_kv", n_blocks, 0) if has_kv_heads else heads
    widths = keys.per_layer("feed_forward_length", n_blocks, 0)
    if keys.arch in _SETS["no_cache"] or keys.arch in ENCODERS:
        kv_heads = [0] * n_blocks
    # Without heads in the first layer, the engine takes their sizes for 0, except for PLaMo 2.
    has_heads = heads[0] > 0 or keys.arch == "plamo2"
    default_dim = n_embd // max(1, heads[0]) if heads[0] else 0
    dims = [
        (has_heads and keys.integer(f"attention.{kind}_length")) or default_dim
        for kind in ("key", "value")
    ]
    swa_dims = [
        keys.integer(f"attention.{kind}_length_swa") or dim
        for kind, dim in zip(("key", "value"), dims, strict=True)
    ]
    compressed = keys.arch in _SETS["compressed"] and keys.integer("attention.key_length_mla")
    windows = _windows(keys, n_layer, kv_heads)
    recurrent = _recurrent_layers(keys, n_layer, kv_heads)
    state = _state_values(keys, n_embd, heads[0])
    n_own = _own_caches(keys, n_blocks)
    layers = []
    for i in range(n_layer):
        is_plain = keys.arch in _SETS["may_be_feed_forward"] and widths[i] > 0
        has_kv = (not recurrent[i] or keys.arch in _SETS["both"]) and not is_plain
        dim_k, dim_v = dims if windows[i] is None else swa_dims
        layers.append(
            LayerShape(
                n_head_kv=kv_heads[i] if has_kv else 0,
                head_dim_k=dim_k,
                head_dim_v=0 if compressed else dim_v,
                window=windows[i] if has_kv else None,
                state_values=state if recurrent[i] and not is_plain else 0,
                shares_kv=i >= n_own,
            )
        )
    if (
        keys.arch in _SETS["no_heads"] or keys.arch in _SETS["both"]
    ):  # though no token is read through it
        layers += [
            LayerShape(kv_heads[i], dims[0], 0 if compressed else dims[1])
            for i in range(n_layer, n_blocks)
            if not widths[i] or keys.arch not in _SETS["may_be_feed_forward"]
        ]
    loops = keys.integer("num_loops") if keys.arch == "nanbeige" else 1
    return tuple(layers) * (loops or 1)


def _own_caches(keys: _Keys, n_blocks: int) -> int:
    """Layers with a cache of their own; those behind attend to one of theirs. Source:
    n_layer_kv_from_start in src/models/gemma3n.cpp and src/models/gemma4.cpp.
    """
    if keys.arch == "gemma3n":
        return 20
    if keys.arch != "gemma4":
        return n_blocks
    n_shared = keys.integer("attention.shared_kv_layers") or 0
    if n_shared > n_blocks - 2:
        raise InputError(
            f"GGUF key {keys.arch}.attention.shared_kv_layers is {n_shared}, of {n_blocks} layers;"
            " the last two at least must have a cache to share"
        )
    return n_blocks - n_shared


def _windows(keys: _Keys, n_layer: int, kv_heads: Sequence[int]) -> list[int | None]:
    """The window of each layer: the pattern in the file, else the engine's own for the arch
    (src/llama-model.cpp, load_swa_pattern; src/llama-hparams.cpp, set_swa_pattern).
    """
    arch, window = keys.arch, keys.integer("attention.sliding_window")
    if window is None and arch in _DEFAULT_WINDOW:
        window = _DEFAULT_WINDOW[arch]
    elif window and arch in _FIXED_WINDOW:
        window = _FIXED_WINDOW[arch]
    if not window or (arch == "exaone4" and n_layer != 64):
        return [None] * n_layer
    if arch == "lfm2":
        return [window if kv else None for kv in kv_heads[:n_layer]]
    if arch not in _FULL_EVERY and arch not in _SETS["windows_in_file"]:
        return [None] * n_layer
    pattern = keys.raw("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) < n_layer:
            raise InputError(
                f"GGUF key {arch}.attention.sliding_window_pattern has {len(pattern)} entries for"
                f" {n_layer} layers"
            )
        return [window if pattern[i] else None for i in range(n_layer)]
    every = keys.integer("attention.sliding_window_pattern") if pattern is not None else None
    every = _FULL_EVERY.get(arch, 1) if every is None else every
    full = 0 if arch in _SETS["full_first"] else every - 1
    return [None if every and i % every == full else window for i in range(n_layer)]


def _recurrent_layers(keys: _Keys, n_layer: int, kv_heads: Sequence[int]) -> list[bool]:
    """Layers with a recurrent state (`is_recr_impl` of src/models/*.cpp)."""
    if keys.arch in _SETS["recurrent"] or keys.arch in _SETS["both"]:
        return [True] * n_layer
    if keys.arch in _FULL_INTERVAL:
        listed = keys.raw("attention.recurrent_layers")
        if isinstance(listed, list) and len(listed) >= n_layer:
            return [bool(item) for item in listed[:n_layer]]
        every = keys.integer("full_attention_interval") or _FULL_INTERVAL[keys.arch]
        return [(i + 1) % every != 0 for i in range(n_layer)]
    return [keys.arch in _SETS["no_heads"] and kv == 0 for kv in kv_heads[:n_layer]]


def _state_values(keys: _Keys, n_embd: int, n_head: int) -> int:
    """Float32 values of a recurrent layer (src/llama-hparams.cpp, n_embd_r + n_embd_s)."""
    if "rwkv" in keys.arch:
        shifts, head = keys.integer("token_shift_count"), keys.integer("wkv.head_size") or 0
        return (2 if shifts is None else shifts) * n_embd + n_embd * head
    if keys.arch in _SETS["short_convolution"]:
        return n_embd * max(0, (keys.integer("shortconv.l_cache") or 0) - 1)
    kernel = keys.integer("ssm.conv_kernel") or 0
    if keys.arch in _SETS["delta_attention"]:
        width = keys.integer("kda.head_dim") or 0
        return 3 * (kernel - 1 if kernel else 3) * n_head * width + width * width * n_head
    if keys.arch == "minimax-01":
        width = keys.integer("attention.key_length") or n_embd // max(1, n_head)
        return width * width * n_head
    inner, state = keys.integer("ssm.inner_size") or 0, keys.integer("ssm.state_size") or 0
    groups = 0 if keys.arch in _SETS["no_groups"] else keys.integer("ssm.group_count") or 0
    return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner


def _n_vocab(keys: _Keys, tensors: Sequence[TargetTensor]) -> int:
    embedding = next((t for t in tensors if t.name == "token_embd.weight"), None)
    if embedding is not None:
        return embedding.n_rows
    tokens = keys.entries.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else keys.require("vocab_size")


def active_parameters(
    tensors: Sequence[TargetTensor], n_expert: int, n_used: int, n_embd: int
) -> int:
    """Parameters that one token reads: the used share of stacked experts, and one row of the
    embedding unless it is the output head too, and of per-layer embeddings.
    """
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    total = 0
    for tensor in tensors:
        if "_exps." in tensor.name and n_expert:
            total += tensor.n_elements // n_expert * n_used
        elif tensor.name == "token_embd.weight" and not tied:
            total += n_embd
        elif tensor.name == "per_layer_token_embd.weight":
            total += tensor.n_per_row
        else:
            total += tensor.n_elements
    return total
