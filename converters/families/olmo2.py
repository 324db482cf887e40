"""OLMo 2 and OLMo 3. Upstream: conversion/olmo.py, `Olmo2Model`; engine: src/models/olmo2.cpp.

Quirks: norms stand after attention and feed-forward part, none before; query and key are normed
over all their heads at once; the head is never the embedding. OLMo 3 adds a sliding window in three
layers of four, with the pattern written out.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf import GGUFValueType

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.gemma2 import sliding_layers
from boardfit.converters.families.layout import TensorRule, copy
from boardfit.converters.families.llama import attention_rules, mlp_rules
from boardfit.converters.families.settings import Config, array, uint32
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import UnsupportedModelError


class Olmo2(DecoderFamily):
    """`Olmo2ForCausalLM`."""

    arch = "olmo2"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        "vocab_size": 50304,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
    }

    def is_tied(self, config: Config) -> bool:
        if super().is_tied(config):
            raise UnsupportedModelError(
                "config.json: tie_word_embeddings is true; the engine's OLMo 2 needs a head of its "
                "own"
            )
        return False

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **attention_rules(dims, interleave=False),
            "self_attn.q_norm.weight": copy("attn_q_norm.weight", dims.q_rows),
            "self_attn.k_norm.weight": copy("attn_k_norm.weight", dims.kv_rows),
            **mlp_rules(dims),
            "post_attention_layernorm.weight": copy("post_attention_norm.weight", dims.n_embd),
            "post_feedforward_layernorm.weight": copy("post_ffw_norm.weight", dims.n_embd),
        }


class Olmo3(Olmo2):
    """`Olmo3ForCausalLM`, which upstream stores as `olmo2` with a window."""

    defaults = {**Olmo2.defaults, "sliding_window": 4096}  # noqa: RUF012 - ClassVar in the base
    _period = 4

    def window(self, config: Config, layer: int) -> int | None:
        sliding = sliding_layers(config, period=self._period)[layer]
        return settings.require_int(config, "sliding_window") if sliding else None

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        attention = f"{self.arch}.attention"
        pattern = sliding_layers(config, period=self._period)
        return [
            uint32(f"{attention}.sliding_window", settings.require_int(config, "sliding_window")),
            array(f"{attention}.sliding_window_pattern", pattern, GGUFValueType.BOOL),
        ]
