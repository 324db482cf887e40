"""Granite 3, dense and mixture of experts. Upstream: conversion/granite.py, `GraniteModel` and
`GraniteMoeModel`; engine: src/models/granite.cpp.

A Llama with four multipliers (embedding, attention, residual, logits) and heads whose size is
always hidden size over heads. The mixture keeps its experts as stacked tensors with gate and up
fused, which are taken apart; a shared expert may stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import TensorRule, copy, split
from boardfit.converters.families.llama import (
    Llama,
    attention_bias_rules,
    attention_rules,
    norm_rules,
)
from boardfit.converters.families.settings import Config, float32, uint32
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import UnsupportedModelError

_MULTIPLIERS = (
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("residual_multiplier", "residual_scale"),
    ("logits_scaling", "logit_scale"),
)


class Granite(Llama):
    """`GraniteForCausalLM`."""

    arch = "granite"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        **DecoderFamily.defaults,
        "max_position_embeddings": 2048,
        **{key: 1.0 for key, _ in _MULTIPLIERS},
    }

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        n_embd = settings.require_int(config, "hidden_size")
        computed = n_embd // settings.require_int(config, "num_attention_heads")
        if config["head_dim"] != computed:
            raise UnsupportedModelError(
                f"config.json: head_dim is {config['head_dim']}, but the engine computes Granite "
                f"with {computed} (hidden size over heads)"
            )
        return config

    def has_head_dim(self, config: Config) -> bool:
        return False

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        entries = super().extra_metadata(config, dims)
        for key, name in _MULTIPLIERS:
            value = settings.require_float(config, key)
            if value:
                entries.append(float32(f"{self.arch}.{name}", value))
        return entries


class GraniteMoe(Granite):
    """`GraniteMoeForCausalLM` and `GraniteMoeSharedForCausalLM`."""

    arch = "granitemoe"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        **Granite.defaults,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **granite_attention_rules(config, dims),
            **expert_rules(config, dims),
            **norm_rules(dims),
        }

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        entries = super().extra_metadata(config, dims)
        shared = _shared_ff(config)
        if shared:
            entries.append(uint32(f"{self.arch}.expert_shared_feed_forward_length", shared))
        return entries


def granite_attention_rules(config: Config, dims: Dimensions) -> dict[str, TensorRule]:
    """The four projections, with biases where the configuration has them."""
    biased = settings.optional_bool(config, "attention_bias", False)
    return {
        **attention_rules(dims, interleave=True),
        **(attention_bias_rules(dims, interleave=True, output=True) if biased else {}),
    }


def expert_rules(config: Config, dims: Dimensions) -> dict[str, TensorRule]:
    """Router, stacked experts, and the shared expert where there is one."""
    n_expert = settings.require_int(config, "num_local_experts")
    halves = (("ffn_gate_exps.weight", dims.n_ff), ("ffn_up_exps.weight", dims.n_ff))
    moe = "block_sparse_moe"
    return {
        f"{moe}.router.layer.weight": copy("ffn_gate_inp.weight", n_expert, dims.n_embd),
        f"{moe}.input_linear.weight": split(halves, n_expert, 2 * dims.n_ff, dims.n_embd),
        f"{moe}.output_linear.weight": copy(
            "ffn_down_exps.weight", n_expert, dims.n_embd, dims.n_ff
        ),
        **_shared_expert_rules(dims, _shared_ff(config)),
    }


def _shared_ff(config: Config) -> int:
    if config.get("shared_intermediate_size") is None:
        return 0
    return settings.require_int(config, "shared_intermediate_size", least=0)


def _shared_expert_rules(dims: Dimensions, n_ff: int) -> dict[str, TensorRule]:
    if not n_ff:
        return {}
    halves = (("ffn_gate_shexp.weight", n_ff), ("ffn_up_shexp.weight", n_ff))
    return {
        "shared_mlp.input_linear.weight": split(halves, 2 * n_ff, dims.n_embd),
        "shared_mlp.output_linear.weight": copy("ffn_down_shexp.weight", dims.n_embd, n_ff),
    }
