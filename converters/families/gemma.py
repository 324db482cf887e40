"""Gemma 2 and 3, the language models. Upstream: conversion/gemma.py, `Gemma2Model`, `Gemma3Model`;
engine: src/models/gemma2.cpp, gemma3.cpp.

Quirks: every norm weight is stored minus one; some layers look back over a window only; the head is
the embedding. The factor sqrt(hidden size) on embeddings is applied by the engine and not stored.
What the engine has built in (the scale of attention scores, the layer pattern) is compared with
`config.json`: a model that would be computed wrongly is refused, or described by an entry that
upstream's converter leaves out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import (
    DecoderFamily,
    Dimensions,
    copies,
    head_values,
    norm_values,
    window_values,
)
from boardfit.converters.families.layout import (
    SourceTensor,
    TensorRule,
    ignore,
    target_tensor,
    to_f32,
)
from boardfit.converters.families.rope import global_rope, rope_parameters
from boardfit.converters.families.settings import Config, quote
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import UnsupportedModelError


class Gemma2(DecoderFamily):
    """`Gemma2ForCausalLM`: scores and logits are capped; a stored `lm_head` is dropped."""

    arch = "gemma2"
    # Every second layer sees the whole context, unless an entry overrides it.
    engine_period: ClassVar[int] = 2
    # The one size whose attention scale is not 1 / sqrt(head_dim).
    engine_27b_layers: ClassVar[int] = 46

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {**copies(dims, "attention", "mlp"), **sandwich_norm_rules(dims)}

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        return {
            **super().outer_rules(config, dims),
            "model.norm.weight": plus_one("output_norm.weight", dims.n_embd),
            "lm_head.weight": ignore(dims.n_vocab, dims.n_embd),
        }

    def sliding(self, config: Config) -> Sequence[bool]:
        return sliding_layers(config, period=self.engine_period)

    def values(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        """In the order of upstream's own `set_gguf_parameters`, which is not the usual one."""
        check_attention_scale(config, dims, self.engine_27b_layers, self.arch)
        caps = {}
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if config.get(key) is None:
                raise UnsupportedModelError(
                    f"config.json: {key} is null; the engine always caps Gemma 2's values"
                )
            caps[key] = settings.require_float(config, key)
        return {
            "context_length": dims.n_ctx,
            "embedding_length": dims.n_embd,
            "block_count": dims.n_layer,
            "feed_forward_length": dims.n_ff,
            "attention.head_count": dims.n_head,
            "attention.head_count_kv": dims.n_head_kv,
            **norm_values(config),
            **head_values(dims),
            **caps,
            **window_values(config),
            **_unusual_rope(config),
            **unusual_pattern(self.sliding(config), self.engine_period),
        }


class Gemma3(DecoderFamily):
    """`Gemma3ForCausalLM`, and the language model of `Gemma3ForConditionalGeneration`.

    Five layers of six look back over a window and rotate with a base of their own. Rope scaling
    concerns full-attention layers only. Published multimodal configurations name few sizes and
    leave the rest to the defaults of `Gemma3TextConfig`.
    """

    arch = "gemma3"
    is_multimodal = True
    engine_period: ClassVar[int] = 6
    engine_27b_layers: ClassVar[int] = 62

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **copies(dims, "attention", "mlp"),
            "self_attn.q_norm.weight": plus_one("attn_q_norm.weight", dims.head_dim),
            "self_attn.k_norm.weight": plus_one("attn_k_norm.weight", dims.head_dim),
            **sandwich_norm_rules(dims),
        }

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        norm = plus_one("output_norm.weight", dims.n_embd)
        return {**super().outer_rules(config, dims), "model.norm.weight": norm}

    def sliding(self, config: Config) -> Sequence[bool]:
        """Older configurations give the pattern as a number instead of `layer_types`. A period of 1
        means full attention everywhere: no window is written then.
        """
        given = settings.optional_int(config, "sliding_window_pattern")
        period = given or self.engine_period
        return () if period == 1 else sliding_layers(config, period=period)

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
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
        values: dict[str, Any] = {}
        cap = settings.optional_float(config, "final_logit_softcapping")
        if cap:
            values["final_logit_softcapping"] = cap
        if sliding := self.sliding(config):
            values |= window_values(config) | unusual_pattern(sliding, self.engine_period)
        return values


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
    known = ("sliding_attention", "full_attention")
    kinds = settings.layer_kinds(config, known, length=n_layer)
    if kinds is None:
        return [(index + 1) % period != 0 for index in range(n_layer)]
    return [kind == "sliding_attention" for kind in kinds]


def unusual_pattern(sliding: Sequence[bool], engine_period: int) -> dict[str, Any]:
    """The layer pattern as an entry when it is not the one that the engine assumes, which upstream
    never writes for these families (src/llama-model.cpp, `load_swa_pattern`).
    """
    if list(sliding) == [(index + 1) % engine_period != 0 for index in range(len(sliding))]:
        return {}
    return {"attention.sliding_window_pattern": list(sliding)}


def _unusual_rope(config: Config) -> dict[str, Any]:
    """A rope base other than the engine's own, 10000, as an entry, which upstream does not write
    for Gemma 2. A fine-tune with another base would be computed wrongly without it.
    """
    rope = global_rope(rope_parameters(config))
    kind = rope.get("rope_type")
    if kind not in (None, "default"):
        raise UnsupportedModelError(
            f"config.json: Gemma 2 with rope scaling {quote(kind)} is unknown"
        )
    base = settings.optional_float(rope, "rope_theta", 10000.0)
    return {} if base in (None, 10000.0) else {"rope.freq_base": base}
