"""Qwen2 and Qwen2.5, dense. Upstream: conversion/qwen.py, `Qwen2Model`.

Quirks: biases on query, key and value only; no row reordering (the engine rotates halves).
Sliding windows of the larger models are neither written by upstream nor used by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import TensorRule
from boardfit.converters.families.llama import (
    attention_bias_rules,
    attention_rules,
    mlp_rules,
    norm_rules,
)
from boardfit.converters.families.settings import Config


class Qwen2(DecoderFamily):
    """`Qwen2ForCausalLM`."""

    arch = "qwen2"

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **attention_rules(dims, interleave=False),
            **attention_bias_rules(dims, interleave=False, output=False),
            **mlp_rules(dims),
            **norm_rules(dims),
        }

    def unused_window(self, config: Config) -> int | None:
        used = settings.optional_bool(config, "use_sliding_window", False)
        return settings.optional_int(config, "sliding_window") if used else None
