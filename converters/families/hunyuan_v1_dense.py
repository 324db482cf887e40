"""Hunyuan, dense. Upstream: conversion/hunyuan.py, `HunYuanModel`; engine:
src/models/hunyuan-vl.cpp.

Quirks: norms over each query and key head, after the rotation. Their stretched context is a larger
base of the rotation (`alpha`), which is computed here, as upstream does; the published models state
32,768 tokens and were trained for 262,144.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import TensorRule, copy
from boardfit.converters.families.llama import attention_rules, mlp_rules, norm_rules
from boardfit.converters.families.rope import rope_parameters
from boardfit.converters.families.settings import Config, float32, string, uint32
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import UnsupportedModelError

_CONTEXT = 262144
_STATED_CONTEXTS = (32768, _CONTEXT)


class HunyuanDense(DecoderFamily):
    """`HunYuanDenseV1ForCausalLM`."""

    arch = "hunyuan-dense"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        "vocab_size": 290943,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """With the stretched base and context in their places."""
        config = super().config(checkpoint)
        settings.require_value(config, "attention_bias", False)
        settings.require_value(config, "num_experts", 1)
        config.pop("num_experts", None)
        rope = rope_parameters(config)
        if rope.get("rope_type") == "dynamic":
            stated = config.get("max_position_embeddings")
            if rope.get("alpha") is None or stated not in _STATED_CONTEXTS:
                raise UnsupportedModelError(
                    f"config.json: rope scaling is dynamic with alpha {rope.get('alpha')!r} and "
                    f"max_position_embeddings {stated!r}; expected a number, and one of "
                    f"{', '.join(map(str, _STATED_CONTEXTS))}"
                )
            size = self.head_dim(config)
            alpha = settings.require_float(rope, "alpha")
            base = settings.require_float(rope, "rope_theta") * alpha ** (size / (size - 2))
            config["rope_parameters"] = {**rope, "rope_theta": base}
            config["max_position_embeddings"] = _CONTEXT
        return config

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **attention_rules(dims, interleave=False),
            "self_attn.query_layernorm.weight": copy("attn_q_norm.weight", dims.head_dim),
            "self_attn.key_layernorm.weight": copy("attn_k_norm.weight", dims.head_dim),
            **mlp_rules(dims),
            **norm_rules(dims),
        }

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        if rope_parameters(config).get("rope_type") != "dynamic":
            return []
        scaling = f"{self.arch}.rope.scaling"
        return [
            string(f"{scaling}.type", "none"),
            float32(f"{scaling}.factor", 1.0),
            uint32(f"{scaling}.original_context_length", _CONTEXT),
        ]
