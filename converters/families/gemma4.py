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

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import (
    MOST_EXPERTS,
    MOST_LAYERS,
    Dimensions,
    copies,
    head_values,
)
from boardfit.converters.families.gemma import Gemma3, sliding_layers
from boardfit.converters.families.layout import Checkpoint, TensorRule, constant, copy
from boardfit.converters.families.settings import Config, quote
from boardfit.converters.spec import TargetTensor
from boardfit.device_profiles.shape import LayerShape, ModelShape
from boardfit.edge.errors import InputError, UnsupportedModelError

# Set by `config` for the other hooks: which layers have a window.
_SLIDING = "boardfit: sliding layers"


class Gemma4(Gemma3):
    """`Gemma4ForCausalLM`, and the language model of `Gemma4ForConditionalGeneration`."""

    arch = "gemma4"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """With one name for the experts, and rope parameters that the base class can write."""
        config = super().config(checkpoint)
        given = settings.optional_mapping(checkpoint.config, "text_config") or checkpoint.config
        config |= _sizes_from_layers(given)
        refuse_unknown_parts(config)
        if settings.optional_bool(config, "enable_moe_block", False):
            n_expert = settings.require_int(config, "num_experts", most=MOST_EXPERTS)
            n_used = settings.require_int(config, "top_k_experts")
            if n_used > n_expert:
                raise InputError(
                    f"config.json: top_k_experts is {n_used}, but num_experts is {n_expert}"
                )
        else:
            config["num_experts"] = config["top_k_experts"] = None
        config["num_experts_per_tok"] = config.get("top_k_experts")
        rope = settings.optional_mapping(config, "rope_parameters") or {}
        full = settings.optional_mapping(rope, "full_attention") or {}
        local = settings.optional_mapping(rope, "sliding_attention") or {}
        kinds = (full.get("rope_type"), local.get("rope_type", "default"))
        if kinds != ("proportional", "default") or full.get("factor", 1.0) != 1.0:
            raise UnsupportedModelError(
                f"config.json: rope_parameters has rope_type {quote(kinds[0])} for full_attention, "
                f"{quote(kinds[1])} for sliding_attention and factor {quote(full.get('factor'))}; "
                "the engine computes proportional, default and no factor"
            )
        config["rope_parameters"] = {**rope, "full_attention": {**full, "rope_type": "default"}}
        settings.require_int(config, "num_hidden_layers", most=MOST_LAYERS)
        # As in transformers the last layer sees everything.
        sliding = [*sliding_layers(config, period=self.engine_period)[:-1], False]
        check_shared_layers(config, sliding)
        return {**config, _SLIDING: sliding}

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        here = self._layer_dimensions(config, dims, layer)
        takes_keys = self._has_keys_for_values(config) and not config[_SLIDING][layer]
        rules = {
            **shared_attention(
                here, is_shared=is_shared(config, dims, layer), has_values=not takes_keys
            ),
            **copies(here, "mlp"),
            **copies(dims, "norms_around"),
            "layer_scalar": copy("layer_output_scale.weight", 1, optional=True),
        }
        width, n_expert = per_layer_width(config), self.n_expert(config)
        if width:
            rules |= copies(dims, "gemma_per_layer", width=width)
        if n_expert:
            expert_ff = self._expert_ff(config)
            rules |= copies(dims, "gemma4_experts", n_expert=n_expert, expert_ff=expert_ff)
        return rules

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        rules = super().outer_rules(config, dims)
        rules["model.norm.weight"] = copy("output_norm.weight", dims.n_embd)
        width = per_layer_width(config)
        if not width:
            return rules
        rows = settings.require_int(config, "vocab_size_per_layer_input")
        if rows != dims.n_vocab:
            raise UnsupportedModelError(
                f"config.json: vocab_size_per_layer_input is {rows}, but vocab_size is "
                f"{dims.n_vocab}; the engine looks every token up in both tables"
            )
        table = copy("per_layer_token_embd.weight", rows, dims.n_layer * width)
        rules["model.embed_tokens_per_layer.weight"] = table
        return {**rules, **copies(dims, "gemma_per_layer_outer", width=width)}

    def extra_tensors(self, config: Config, dims: Dimensions) -> list[TargetTensor]:
        """Divisors for full attention: 1 where a pair of values is rotated, else so large that it
        is not (upstream: `generate_extra_tensors`).
        """
        full = config["rope_parameters"]["full_attention"]
        part = settings.optional_float(full, "partial_rotary_factor", 1.0)
        if part is None or not 0.0 <= part <= 1.0:
            raise InputError(
                f"config.json: partial_rotary_factor is {quote(part)}; expected 0 to 1"
            )
        size = self._full_head_dim(config)
        factors = np.full(size // 2, 1e30, dtype=np.float32)
        factors[: int(size * part / 2)] = 1.0
        return [constant("rope_freqs.weight", factors, "rope_parameters")]

    def per_layer(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        layers = [self._layer_dimensions(config, dims, i) for i in range(dims.n_layer)]
        values: dict[str, Any] = dict.fromkeys(head_values(dims), self._full_head_dim(config))
        if settings.optional_bool(config, "use_double_wide_mlp", False):
            values["feed_forward_length"] = [layer.n_ff for layer in layers]
        if config.get("num_global_key_value_heads") is not None:
            values["attention.head_count_kv"] = [layer.n_head_kv for layer in layers]
        return values

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        # Without the cap's entry the engine caps at 30 (upstream leaves it out then).
        cap = settings.optional_float(config, "final_logit_softcapping", 0.0) or 0.0
        experts = {}
        if self.n_expert(config):
            experts = {"expert_feed_forward_length": self._expert_ff(config)}
        return {
            "final_logit_softcapping": cap,
            "attention.sliding_window": settings.require_int(config, "sliding_window"),
            "attention.shared_kv_layers": config["num_kv_shared_layers"],
            "embedding_length_per_layer_input": per_layer_width(config),
            "attention.sliding_window_pattern": config[_SLIDING],
            "attention.key_length_swa": dims.head_dim,
            "attention.value_length_swa": dims.head_dim,
            **experts,
            "rope.dimension_count": self._full_head_dim(config),
            "rope.dimension_count_swa": dims.head_dim,
        }

    def shape(self, checkpoint: Checkpoint) -> ModelShape:
        config = self.config(checkpoint)
        dims = self.dimensions(config)
        widest = max(
            self._layer_dimensions(config, dims, layer).n_ff for layer in range(dims.n_layer)
        )
        return replace(super().shape(checkpoint), n_ff=widest)

    def layer_shape(self, config: Config, dims: Dimensions, layer: int) -> LayerShape:
        shape = super().layer_shape(config, self._layer_dimensions(config, dims, layer), layer)
        return replace(shape, shares_kv=is_shared(config, dims, layer))

    def sliding(self, config: Config) -> Sequence[bool]:
        found: Sequence[bool] = config[_SLIDING]
        return found

    def _full_head_dim(self, config: Config) -> int:
        return settings.optional_int(config, "global_head_dim") or self.head_dim(config)

    def _has_keys_for_values(self, config: Config) -> bool:
        return settings.optional_bool(config, "attention_k_eq_v", False)

    def _layer_dimensions(self, config: Config, dims: Dimensions, layer: int) -> Dimensions:
        is_wide = settings.optional_bool(config, "use_double_wide_mlp", False)
        if is_wide and is_shared(config, dims, layer):
            dims = replace(dims, n_ff=2 * dims.n_ff)
        if config[_SLIDING][layer]:
            return dims
        n_head_kv = dims.n_head_kv
        if self._has_keys_for_values(config):
            n_head_kv = settings.optional_int(config, "num_global_key_value_heads") or n_head_kv
        if dims.n_head % n_head_kv:
            raise InputError(
                f"config.json: {dims.n_head} query heads cannot share num_global_key_value_heads "
                f"{n_head_kv} evenly"
            )
        return replace(dims, head_dim=self._full_head_dim(config), n_head_kv=n_head_kv)

    def _expert_ff(self, config: Config) -> int:
        key = "expert_intermediate_size"
        given = key if config.get(key) is not None else "moe_intermediate_size"
        return settings.require_int(config, given)


class Gemma4Unified(Gemma4):
    """`Gemma4UnifiedForConditionalGeneration` (12B), whose images and sounds have no towers."""


def _sizes_from_layers(config: Config) -> dict[str, Any]:
    """The sizes of full attention from `per_layer_config`, in which transformers writes them from
    5.15 on: an object by layer for each that differs from the configuration's first sizes.
    """
    layers = settings.optional_mapping(config, "per_layer_config") or {}
    rows = {key: settings.optional_mapping(layers, key) or {} for key in layers}
    found: dict[str, Any] = {}
    for inner, key in (
        ("head_dim", "global_head_dim"),
        ("num_key_value_heads", "num_global_key_value_heads"),
    ):
        sizes = {settings.require_int(row, inner) for row in rows.values() if inner in row}
        if len(sizes) > 1:
            raise UnsupportedModelError(
                f"config.json: per_layer_config has {inner} {sorted(sizes)}; the engine's Gemma 4 "
                "has one size beside that of layers with a window"
            )
        if sizes and config.get(key) is None:
            found[key] = sizes.pop()
    if rows and config.get("layer_types") is None:
        n_layer = settings.require_int(config, "num_hidden_layers", most=MOST_LAYERS)
        full = {int(key) for key in rows if key.isascii() and key.isdigit() and len(key) < 6}
        kinds = ["full_attention" if i in full else "sliding_attention" for i in range(n_layer)]
        found["layer_types"] = kinds
    return found


def refuse_unknown_parts(config: Config) -> None:
    """Raises UnsupportedModelError for what the engine's Gemma 3n and 4 do not compute."""
    if config.get("use_bidirectional_attention") in (True, "all"):
        raise UnsupportedModelError(
            "config.json: use_bidirectional_attention is set for all tokens: an embedding model, "
            "not a chat model"
        )
    if settings.optional_bool(config, "attention_bias", False):
        raise UnsupportedModelError(
            "config.json: attention_bias is true; the engine's Gemma has no biases in attention"
        )
    if config.get("hidden_activation") != "gelu_pytorch_tanh":
        raise UnsupportedModelError(
            f"config.json: hidden_activation is {quote(config.get('hidden_activation'))}; the "
            "engine computes gelu_pytorch_tanh"
        )


def check_shared_layers(config: Config, sliding: Sequence[bool]) -> None:
    """Compare `num_kv_shared_layers` with what the engine does; raises UnsupportedModelError.

    The engine takes keys and values of the last layer before the shared ones for full attention,
    and of the one before it for layers with a window (src/llama-model.cpp, `create_memory`), and
    aborts where fewer than two layers are left or none has a window.
    """
    n_shared = settings.require_int(config, "num_kv_shared_layers", least=0)
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
                f"values of layer {expected}, but layer_types makes it another kind; the answers "
                "would be wrong"
            )


def is_shared(config: Config, dims: Dimensions, layer: int) -> bool:
    """Whether a layer uses the keys and values of another."""
    n_shared: int = config["num_kv_shared_layers"]
    return layer >= dims.n_layer - n_shared


def shared_attention(
    dims: Dimensions, *, is_shared: bool, has_values: bool = True
) -> dict[str, TensorRule]:
    """Projections and head norms. Published checkpoints hold keys and values of shared layers too,
    which nothing reads; transformers saves none.
    """
    own = ["gemma_keys", *(["gemma_values"] if has_values else [])]
    return {**copies(dims, "gemma_query"), **copies(dims, *own, optional=is_shared)}


def per_layer_width(config: Config) -> int:
    """Values that each layer gets of a token's own; 0 without per-layer embeddings."""
    if config.get("hidden_size_per_layer_input") is None:
        return 0
    return settings.require_int(config, "hidden_size_per_layer_input", least=0)
