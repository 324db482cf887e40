"""Gemma 3, the language model: text-only checkpoints and the text part of multimodal ones.

Upstream: conversion/gemma.py, `Gemma3Model`; engine: src/models/gemma3.cpp. Quirks: norm weights
are stored minus one, those of query and key heads too; five layers of six look back over a window
and rotate with a base of their own; rope scaling concerns full-attention layers only. Published
multimodal configurations name few sizes and leave the rest to the defaults of `Gemma3TextConfig`.
The vision tower is not part of a text artifact.
"""

from __future__ import annotations

from collections.abc import Mapping

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.gemma2 import (
    check_attention_scale,
    plus_one,
    sandwich_norm_rules,
    sliding_layers,
    unusual_pattern,
)
from boardfit.converters.families.layout import TensorRule, language_model_only
from boardfit.converters.families.llama import attention_rules, mlp_rules
from boardfit.converters.families.settings import Config, float32, uint32
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import UnsupportedModelError


class Gemma3(DecoderFamily):
    """`Gemma3ForCausalLM`, and the language model of `Gemma3ForConditionalGeneration`."""

    arch = "gemma3"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    }
    engine_period = 6
    engine_27b_layers = 62

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **attention_rules(dims, interleave=False),
            "self_attn.q_norm.weight": plus_one("attn_q_norm.weight", dims.head_dim),
            "self_attn.k_norm.weight": plus_one("attn_k_norm.weight", dims.head_dim),
            **mlp_rules(dims),
            **sandwich_norm_rules(dims),
        }

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        return {
            **super().outer_rules(config, dims),
            "model.norm.weight": plus_one("output_norm.weight", dims.n_embd),
        }

    def rename(self, name: str) -> str | None:
        return language_model_only(name)

    def window(self, config: Config, layer: int) -> int | None:
        if not self._has_window(config):
            return None
        sliding = sliding_layers(config, period=self._period(config))[layer]
        return settings.require_int(config, "sliding_window") if sliding else None

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        check_attention_scale(config, dims, self.engine_27b_layers, self.arch)
        if config.get("attn_logit_softcapping") is not None:
            raise UnsupportedModelError(
                "config.json: attn_logit_softcapping is set; Gemma 3 has no cap on scores, and the "
                "engine applies none"
            )
        if settings.optional_bool(config, "use_bidirectional_attention", False):
            raise UnsupportedModelError(
                "config.json: use_bidirectional_attention is set: an embedding model, not a chat "
                "model"
            )
        entries = []
        cap = settings.optional_float(config, "final_logit_softcapping")
        if cap:
            entries.append(float32(f"{self.arch}.final_logit_softcapping", cap))
        if self._has_window(config):
            window = settings.require_int(config, "sliding_window")
            entries.append(uint32(f"{self.arch}.attention.sliding_window", window))
            period = self._period(config)
            entries += unusual_pattern(self.arch, config, self.engine_period, period=period)
        return entries

    def _period(self, config: Config) -> int:
        """Older configurations give the pattern as a number instead of `layer_types`."""
        return settings.optional_int(config, "sliding_window_pattern") or self.engine_period

    def _has_window(self, config: Config) -> bool:
        """A period of 1 means full attention everywhere: no window is written then."""
        return self._period(config) != 1
