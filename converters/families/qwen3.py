"""Qwen3, dense. Upstream: conversion/qwen.py, `Qwen3Model`.

Quirks: norms over each query and key head, heads whose size is independent of the hidden size
(128 if `config.json` does not give one), biases only where `attention_bias` asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import TensorRule, copy
from boardfit.converters.families.llama import (
    attention_bias_rules,
    attention_rules,
    mlp_rules,
    norm_rules,
)
from boardfit.converters.families.qwen2 import Qwen2
from boardfit.converters.families.settings import Config


class Qwen3(Qwen2):
    """`Qwen3ForCausalLM`."""

    arch = "qwen3"
    defaults = {**DecoderFamily.defaults, "head_dim": 128}  # noqa: RUF012 - ClassVar in the base

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        biased = settings.optional_bool(config, "attention_bias", False)
        return {
            **attention_rules(dims, interleave=False),
            **(attention_bias_rules(dims, interleave=False, output=True) if biased else {}),
            **head_norm_rules(dims),
            **mlp_rules(dims),
            **norm_rules(dims),
        }


def head_norm_rules(dims: Dimensions) -> dict[str, TensorRule]:
    """Norms over each query and key head."""
    return {
        "self_attn.q_norm.weight": copy("attn_q_norm.weight", dims.head_dim),
        "self_attn.k_norm.weight": copy("attn_k_norm.weight", dims.head_dim),
    }
