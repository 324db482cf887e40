"""ERNIE 4.5, dense. Upstream: conversion/ernie.py, `Ernie4_5Model`; engine:
src/models/ernie4-5.cpp.

Quirks: its rotary embeddings turn neighbours, as the engine's do, so no row is reordered. Heads
have 128 values if `config.json` does not give their size. The engine has no biases for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import TensorRule
from boardfit.converters.families.llama import attention_rules, mlp_rules, norm_rules
from boardfit.converters.families.settings import Config


class Ernie45(DecoderFamily):
    """`Ernie4_5ForCausalLM`."""

    arch = "ernie4_5"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        "vocab_size": 103424,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    }

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        settings.require_value(config, "use_bias", False)
        return {
            **attention_rules(dims, interleave=False),
            **mlp_rules(dims),
            **norm_rules(dims),
        }

    def rename(self, name: str) -> str | None:
        return name.replace("ernie.", "model.", 1) if name.startswith("ernie.") else name
