"""Gemma 4, the language model: dense, with per-layer embeddings (E2B, E4B), and with experts.

Upstream: conversion/gemma.py, `Gemma4Model`; engine: src/models/gemma4.cpp. Quirks: layers that
look back over a window and those that see everything differ in head size and key-value heads; the
last layers keep no keys and values and use those of an earlier layer of their kind, with a wider
feed-forward part where `use_double_wide_mlp` is set; full attention may take its keys for values;
part of each head of full attention is not rotated, which divisors of 1e30 express; each layer ends
with a scale. Norms are stored as they are. What the engine has built in is compared with
`config.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from boardfit.converters.families.decoder import MOST_EXPERTS, Dimensions
from boardfit.converters.families.gemma import Gemma3
from boardfit.converters.families.layout import TensorRule, constant
from boardfit.converters.families.settings import Config, quote
from boardfit.converters.families.shape import MOST_LAYERS
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError, UnsupportedModelError


class SharedLayers(Gemma3):
    """The last `num_kv_shared_layers` layers use the keys and values of others."""

    def is_shared(self, layer: int) -> bool:
        n_shared: int = self.config["num_kv_shared_layers"]
        return layer >= self.dims.n_layer - n_shared

    def shared_attention(
        self, layer: int, *, dims: Dimensions | None = None, has_values: bool = True
    ) -> dict[str, TensorRule]:
        """Projections and head norms. Published checkpoints hold keys and values of shared layers
        too, which nothing reads; transformers saves none.
        """
        own = ("gemma_keys", "gemma_values") if has_values else ("gemma_keys",)
        keys = self.rules(*own, dims=dims, optional=self.is_shared(layer))
        return {**self.rules("gemma_query", dims=dims), **keys}

    def check_shared_layers(self) -> None:
        """Compare `num_kv_shared_layers` with what the engine does; raises UnsupportedModelError.

        The engine takes keys and values of the last layer before the shared ones for full
        attention, and of the one before it for layers with a window (src/llama-model.cpp,
        `create_memory`), and aborts where fewer than two layers are left or none has a window.
        """
        sliding, n_shared = self.sliding, self.config.whole("num_kv_shared_layers", least=0)
        first = len(sliding) - n_shared
        if first < 2 or not any(sliding):
            raise UnsupportedModelError(
                f"config.json: num_kv_shared_layers is {n_shared} of {len(sliding)} layers, and "
                f"{sum(sliding)} of layer_types are sliding_attention; the engine needs two layers "
                "with keys and values of their own, and one with a window"
            )
        for kind in set(sliding[first:]):
            own = [layer for layer in range(first) if sliding[layer] is kind]
            expected = first - (2 if kind else 1)
            if own[-1:] != [expected]:
                raise UnsupportedModelError(
                    f"config.json: with num_kv_shared_layers {n_shared} the engine takes keys and "
                    f"values of layer {expected}, but layer_types makes it another kind; the "
                    "answers would be wrong"
                )


class Gemma4(SharedLayers):
    """`Gemma4ForCausalLM`, and the language model of `Gemma4ForConditionalGeneration`."""

    arch = "gemma4"
    outer_parts: tuple[str, ...] = ("outer",)

    def adjust(self) -> None:
        """With one name for the experts, and rope parameters that the base class can write."""
        super().adjust()
        config, outer = self.config, Config(self.checkpoint.config)
        config |= _sizes_from_layers(outer.inner("text_config") or outer)
        if config.flag("enable_moe_block"):
            n_expert = config.whole("num_experts", most=MOST_EXPERTS)
            n_used = config.whole("top_k_experts")
            if n_used > n_expert:
                raise InputError(
                    f"config.json: top_k_experts is {n_used}, but num_experts is {n_expert}"
                )
        else:
            config["num_experts"] = config["top_k_experts"] = None
        config["num_experts_per_tok"] = config.get("top_k_experts")
        rope = config.inner("rope_parameters")
        full, local = rope.inner("full_attention"), rope.inner("sliding_attention")
        kinds = (full.get("rope_type"), local.get("rope_type", "default"))
        if kinds != ("proportional", "default") or full.get("factor", 1.0) != 1.0:
            raise UnsupportedModelError(
                f"config.json: rope_parameters has rope_type {quote(kinds[0])} for full_attention, "
                f"{quote(kinds[1])} for sliding_attention and factor {quote(full.get('factor'))}; "
                "the engine computes proportional, default and no factor"
            )
        config["rope_parameters"] = {**rope, "full_attention": {**full, "rope_type": "default"}}
        self.n_layers()
        # As in transformers the last layer sees everything.
        self._sliding = [*self.find_sliding(self.engine_period)[:-1], False]
        self.check_shared_layers()
        if self._per_layer_width():
            self.outer_parts = ("outer", "gemma4_table", "gemma_per_layer_outer")
            rows, n_vocab = config.whole("vocab_size_per_layer_input"), config.whole("vocab_size")
            if rows != n_vocab:
                raise UnsupportedModelError(
                    f"config.json: vocab_size_per_layer_input is {rows}, but vocab_size is "
                    f"{n_vocab}; the engine looks every token up in both tables"
                )

    @property
    def sliding(self) -> Sequence[bool]:
        return self._sliding

    def layer_rules(self, layer: int) -> Mapping[str, TensorRule]:
        here = self._layer_dimensions(layer)
        takes_keys = self.config.flag("attention_k_eq_v") and not self._sliding[layer]
        parts = ["norms_around", "gemma4_scale"]
        parts += ["gemma_per_layer"] if self._per_layer_width() else []
        parts += ["gemma4_experts"] if self.n_expert else []
        return {
            **self.shared_attention(layer, dims=here, has_values=not takes_keys),
            **self.rules("mlp", dims=here),
            **self.rules(*parts),
        }

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"expert_ff": self._expert_ff()} if self.n_expert else {}

    def extra_tensors(self) -> list[TargetTensor]:
        """Divisors for full attention: 1 where a pair of values is rotated, else so large that it
        is not (upstream: `generate_extra_tensors`).
        """
        full = Config(self.config["rope_parameters"]["full_attention"])
        part = full.number_or("partial_rotary_factor", 1.0)
        if not 0.0 <= part <= 1.0:
            raise InputError(
                f"config.json: partial_rotary_factor is {quote(part)}; expected 0 to 1"
            )
        size = self._full_head_dim()
        factors = np.full(size // 2, 1e30, dtype=np.float32)
        factors[: int(size * part / 2)] = 1.0
        return [constant("rope_freqs.weight", factors, "rope_parameters")]

    def per_layer(self) -> dict[str, Any]:
        layers = [self._layer_dimensions(i) for i in range(self.dims.n_layer)]
        values: dict[str, Any] = dict.fromkeys(self.head_values(), self._full_head_dim())
        if self.config.flag("use_double_wide_mlp"):
            values["feed_forward_length"] = [layer.n_ff for layer in layers]
        if self.config.get("num_global_key_value_heads") is not None:
            values["attention.head_count_kv"] = [layer.n_head_kv for layer in layers]
        return values

    def extra_metadata(self) -> dict[str, Any]:
        config, head_dim = self.config, self.dims.head_dim
        experts = {"expert_feed_forward_length": self._expert_ff()} if self.n_expert else {}
        return {
            # Without the cap's entry the engine caps at 30 (upstream leaves it out then).
            "final_logit_softcapping": config.number_or("final_logit_softcapping", 0.0),
            "attention.sliding_window": config.whole("sliding_window"),
            "attention.shared_kv_layers": config["num_kv_shared_layers"],
            "embedding_length_per_layer_input": self._per_layer_width(),
            "attention.sliding_window_pattern": self._sliding,
            "attention.key_length_swa": head_dim,
            "attention.value_length_swa": head_dim,
            **experts,
            "rope.dimension_count": self._full_head_dim(),
            "rope.dimension_count_swa": head_dim,
        }

    def _full_head_dim(self) -> int:
        return self.config.whole_or("global_head_dim", None) or self.head_dim()

    def _layer_dimensions(self, layer: int) -> Dimensions:
        dims, config = self.dims, self.config
        if config.flag("use_double_wide_mlp") and self.is_shared(layer):
            dims = replace(dims, n_ff=2 * dims.n_ff)
        if self._sliding[layer]:
            return dims
        n_head_kv = dims.n_head_kv
        if config.flag("attention_k_eq_v"):
            n_head_kv = config.whole_or("num_global_key_value_heads", n_head_kv)
        if dims.n_head % n_head_kv:
            raise InputError(
                f"config.json: {dims.n_head} query heads cannot share num_global_key_value_heads "
                f"{n_head_kv} evenly"
            )
        return replace(dims, head_dim=self._full_head_dim(), n_head_kv=n_head_kv)

    def _expert_ff(self) -> int:
        key = "expert_intermediate_size"
        return self.config.whole_or(key, None) or self.config.whole("moe_intermediate_size")

    def _per_layer_width(self) -> int:
        """Values that each layer gets of a token's own; 0 without per-layer embeddings."""
        key = "hidden_size_per_layer_input"
        return 0 if self.config.get(key) is None else self.config.whole(key, least=0)


class Gemma4Unified(Gemma4):
    """`Gemma4UnifiedForConditionalGeneration` (12B), whose images and sounds have no towers."""


def _sizes_from_layers(config: Config) -> dict[str, Any]:
    """The sizes of full attention from `per_layer_config`, in which transformers writes them from
    5.15 on: an object by layer for each that differs from the configuration's first sizes.
    """
    layers = config.inner("per_layer_config")
    rows = {key: layers.inner(key) for key in layers}
    found: dict[str, Any] = {}
    for inner, key in (
        ("head_dim", "global_head_dim"),
        ("num_key_value_heads", "num_global_key_value_heads"),
    ):
        sizes = {row.whole(inner) for row in rows.values() if inner in row}
        if len(sizes) > 1:
            raise UnsupportedModelError(
                f"config.json: per_layer_config has {inner} {sorted(sizes)}; the engine's Gemma 4 "
                "has one size beside that of layers with a window"
            )
        if sizes and config.get(key) is None:
            found[key] = sizes.pop()
    if rows and config.get("layer_types") is None:
        n_layer = config.whole("num_hidden_layers", most=MOST_LAYERS)
        full = {int(key) for key in rows if key.isascii() and key.isdigit() and len(key) < 6}
        kinds = ["full_attention" if i in full else "sliding_attention" for i in range(n_layer)]
        found["layer_types"] = kinds
    return found
