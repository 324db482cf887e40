"""A model's shape: the numbers that memory and speed depend on, regardless of the file format."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShape:
    """One layer's state. Attention layers keep `n_head_kv × (head_dim_k + head_dim_v)` KV values
    per token, of at most `window` tokens. Recurrent layers keep `state_values` float32 values in
    all, and their `n_head_kv` is 0, but some are both. A layer that `shares_kv` attends to an
    earlier cache.
    """

    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    window: int | None = None
    state_values: int = 0
    shares_kv: bool = False

    @property
    def has_cache(self) -> bool:
        return self.n_head_kv > 0 and not self.shares_kv


@dataclass(frozen=True)
class ModelShape:
    """Shape of a decoder-only language model. `n_params` counts every stored parameter once,
    `n_params_active` those that one token reads.
    """

    arch: str
    n_layer: int
    n_embd: int
    n_head: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    layers: tuple[LayerShape, ...]
    n_params: int
    n_params_active: int
    n_expert: int = 0
    n_expert_used: int = 0
    tied_embeddings: bool = False
    memory_known: bool = True

    @property
    def lazy_table(self) -> str | None:
        """The tensor of which the engine reads only the rows of the tokens that come."""
        return find_lazy_table(self.arch)

    @property
    def n_head_kv(self) -> int:
        """KV heads of the attention layers (the largest, where layers differ)."""
        return max((layer.n_head_kv for layer in self.layers), default=0)

    @property
    def head_dims(self) -> list[int]:
        """Sizes of K and V heads of every attention layer."""
        return [d for x in self.layers if x.n_head_kv for d in (x.head_dim_k, x.head_dim_v)]


def is_behind(name: str, n_layer: int) -> bool:
    """Whether a tensor belongs to a block of next-token prediction, which is not loaded unasked."""
    parts = name.split(".", 2)
    return parts[0] == "blk" and len(parts) > 2 and parts[1].isdigit() and int(parts[1]) >= n_layer


def find_lazy_table(arch: str) -> str | None:
    """The table that the engine may read row by row (TENSOR_READ_LAZY in src/models/*.cpp)."""
    return "per_layer_token_embd.weight" if arch == "gemma4" else None
