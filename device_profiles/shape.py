"""A model's shape: the numbers that memory and speed depend on, regardless of the file format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerShape:
    """One layer's state. Attention layers keep `n_head_kv × (head_dim_k + head_dim_v)` KV values
    per token, at most `window` tokens of them (None: the whole context). Recurrent layers keep
    `state_values` float32 values in all, regardless of the context; their `n_head_kv` is 0, except
    in layers that have both. A layer that `shares_kv` attends to an earlier layer's cache.
    """

    n_head_kv: int
    head_dim_k: int
    head_dim_v: int
    window: int | None = None
    state_values: int = 0
    shares_kv: bool = False

    @property
    def has_cache(self) -> bool:
        """Whether the layer has KV values of its own."""
        return self.n_head_kv > 0 and not self.shares_kv


@dataclass(frozen=True)
class ModelShape:
    """Shape of a decoder-only language model.

    `n_params` counts every stored parameter once (tied heads once). `n_params_active` counts those
    that one token reads (a mixture of experts reads only the chosen experts).
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

    @property
    def n_head_kv(self) -> int:
        """KV heads of the attention layers (the largest, where layers differ)."""
        return max((layer.n_head_kv for layer in self.layers), default=0)

    @property
    def head_dims(self) -> list[int]:
        """Sizes of K and V heads of every attention layer."""
        return [d for x in self.layers if x.n_head_kv for d in (x.head_dim_k, x.head_dim_v)]
