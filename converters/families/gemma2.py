"""Gemma 2. Upstream: conversion/gemma.py, `Gemma2Model`; engine: src/models/gemma2.cpp.

Quirks: every norm weight is stored minus one; scores and logits are capped; every other layer looks
back over a window; the head is the embedding (a stored `lm_head` is dropped). The factor
sqrt(hidden size) on embeddings is applied by the engine and not stored. What the engine has built
in (the scale of attention scores, the layer pattern) is compared with `config.json`: a model that
would be computed wrongly is refused, or described by an entry that upstream's converter leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint, SourceTensor
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import TensorRule, copy, ignore, target_tensor, to_f32
from boardfit.converters.families.llama import attention_rules, mlp_rules
from boardfit.converters.families.rope import global_rope, rope_parameters
from boardfit.converters.families.settings import Config, array, float32, quote, uint32
from boardfit.converters.spec import KeyValue, TargetTensor
from boardfit.edge.errors import UnsupportedModelError


class Gemma2(DecoderFamily):
    """`Gemma2ForCausalLM`."""

    arch = "gemma2"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        "vocab_size": 256000,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    engine_period = 2  # every second layer sees the whole context, unless an entry overrides it
    engine_27b_layers = 46  # the one size whose attention scale is not 1 / sqrt(head_dim)

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **attention_rules(dims, interleave=False),
            **mlp_rules(dims),
            **sandwich_norm_rules(dims),
        }

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        return {
            "model.embed_tokens.weight": copy("token_embd.weight", dims.n_vocab, dims.n_embd),
            "model.norm.weight": plus_one("output_norm.weight", dims.n_embd),
            "lm_head.weight": ignore(dims.n_vocab, dims.n_embd),
        }

    def window(self, config: Config, layer: int) -> int | None:
        sliding = sliding_layers(config, period=self.engine_period)[layer]
        return settings.require_int(config, "sliding_window") if sliding else None

    def metadata(self, checkpoint: Checkpoint) -> list[KeyValue]:
        """In the order of upstream's own `set_gguf_parameters`, which is not the usual one."""
        config = self.config(checkpoint)
        dims = self.dimensions(config)
        check_attention_scale(config, dims, self.engine_27b_layers, self.arch)
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if config.get(key) is None:
                raise UnsupportedModelError(
                    f"config.json: {key} is null; the engine always caps Gemma 2's values"
                )
        arch, attention = self.arch, f"{self.arch}.attention"
        return [
            uint32(f"{arch}.context_length", dims.n_ctx),
            uint32(f"{arch}.embedding_length", dims.n_embd),
            uint32(f"{arch}.block_count", dims.n_layer),
            uint32(f"{arch}.feed_forward_length", dims.n_ff),
            uint32(f"{attention}.head_count", dims.n_head),
            uint32(f"{attention}.head_count_kv", dims.n_head_kv),
            *self._norm_entries(config),
            uint32(f"{attention}.key_length", dims.head_dim),
            uint32(f"{attention}.value_length", dims.head_dim),
            float32(
                f"{arch}.attn_logit_softcapping",
                settings.require_float(config, "attn_logit_softcapping"),
            ),
            float32(
                f"{arch}.final_logit_softcapping",
                settings.require_float(config, "final_logit_softcapping"),
            ),
            uint32(f"{attention}.sliding_window", settings.require_int(config, "sliding_window")),
            *_unusual_rope(arch, config),
            *unusual_pattern(arch, config, self.engine_period),
        ]


def plus_one(target: str, *shape: int) -> TensorRule:
    """A norm weight stored minus one, plus one.

    Upstream adds in float16 when the source is float16, else in float32 (conversion/base.py,
    `prepare_tensors`, widens everything but float16 before the family sees it): so do we.
    """

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        rows = source.data.reshape(-1, source.shape[-1])
        half = source.dtype == "F16"

        def read(start: int, stop: int) -> np.ndarray:
            values = rows[start:stop] if half else to_f32(rows[start:stop], source.dtype)
            shifted: np.ndarray = values + values.dtype.type(1)
            return shifted

        return [target_tensor(name, shape, "F16" if half else "F32", read, source.name)]

    return TensorRule(target, shape, build)


def sandwich_norm_rules(dims: Dimensions) -> dict[str, TensorRule]:
    """Norms before and after attention and the feed-forward part, all stored minus one."""
    return {
        "input_layernorm.weight": plus_one("attn_norm.weight", dims.n_embd),
        "post_attention_layernorm.weight": plus_one("post_attention_norm.weight", dims.n_embd),
        "pre_feedforward_layernorm.weight": plus_one("ffn_norm.weight", dims.n_embd),
        "post_feedforward_layernorm.weight": plus_one("post_ffw_norm.weight", dims.n_embd),
    }


def check_attention_scale(config: Config, dims: Dimensions, n_layer_27b: int, arch: str) -> None:
    """The engine scales scores by 1 / sqrt(head_dim), in the 27B model (recognized by its layer
    count) by 1 / sqrt(hidden size / heads). Raises UnsupportedModelError when
    `query_pre_attn_scalar` asks for another scale.
    """
    wanted = settings.require_float(config, "query_pre_attn_scalar")
    engine = dims.n_embd // dims.n_head if dims.n_layer == n_layer_27b else dims.head_dim
    if wanted != engine:
        raise UnsupportedModelError(
            f"config.json: query_pre_attn_scalar is {wanted:g}, but the engine computes {arch} "
            f"with {engine} here; the answers would be wrong"
        )


def sliding_layers(config: Config, *, period: int) -> list[bool]:
    """For each layer whether it looks back over the window only: `layer_types`, else all but every
    `period`-th layer.
    """
    n_layer = settings.require_int(config, "num_hidden_layers")
    kinds = settings.optional_list(config, "layer_types", n_layer)
    if kinds is None:
        return [(index + 1) % period != 0 for index in range(n_layer)]
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise UnsupportedModelError(
                f"config.json: layer_types has {quote(kind)}; known here: sliding_attention, "
                "full_attention"
            )
    return [kind == "sliding_attention" for kind in kinds]


def unusual_pattern(
    arch: str, config: Config, engine_period: int, *, period: int | None = None
) -> list[KeyValue]:
    """The layer pattern as an entry when it is not the one that the engine assumes.

    Upstream's converter never writes it for these families; the engine reads it
    (src/llama-model.cpp, `load_swa_pattern`).
    """
    sliding = sliding_layers(config, period=period or engine_period)
    if sliding == [(index + 1) % engine_period != 0 for index in range(len(sliding))]:
        return []
    return [array(f"{arch}.attention.sliding_window_pattern", sliding, GGUFValueType.BOOL)]


def _unusual_rope(arch: str, config: Config) -> list[KeyValue]:
    """Write a rope base other than the engine's own.

    Upstream writes no rope entries for Gemma 2 and the engine assumes 10000. A fine-tune with
    another base would be computed wrongly without the entry.
    """
    rope = global_rope(rope_parameters(config))
    kind = rope.get("rope_type")
    if kind not in (None, "default"):
        raise UnsupportedModelError(
            f"config.json: Gemma 2 with rope scaling {quote(kind)} is unknown"
        )
    base = settings.optional_float(rope, "rope_theta", 10000.0)
    return [] if base in (None, 10000.0) else [float32(f"{arch}.rope.freq_base", base)]
