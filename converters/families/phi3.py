"""Phi-3, Phi-3.5 and Phi-4-mini. Upstream: conversion/phi.py, `Phi3MiniModel`; engine:
src/models/phi3.cpp.

Quirks: query, key and value are one tensor and stay so, gate and up too (under the name `ffn_up`);
part of a head may be rotated; long-context models carry two sets of rope divisors, which become
tensors, and a factor on attention. Upstream writes the sliding window, 0 for none, but the engine
does not use it, so every layer keeps the whole context.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, copies, norm_values
from boardfit.converters.families.layout import TensorRule, constant
from boardfit.converters.families.rope import global_rope, rope_parameters
from boardfit.converters.families.settings import Config, quote
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.fields import is_finite

# transformers reads the two older names as `longrope` for this family (Phi3Config,
# `_rope_scaling_adjustment`).
_LONGROPE = ("longrope", "su", "yarn")


class Phi3(DecoderFamily):
    """`Phi3ForCausalLM`."""

    arch = "phi3"

    def head_dim(self, config: Config) -> int:
        """Always hidden size over heads: the engine knows no other size for this family."""
        return settings.require_int(config, "hidden_size") // settings.require_int(
            config, "num_attention_heads"
        )

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        qkv_rows = dims.q_rows + 2 * dims.kv_rows
        return copies(dims, "phi3", "norms", qkv_rows=qkv_rows)

    def extra_tensors(self, config: Config, dims: Dimensions) -> list[TargetTensor]:
        factors = _long_and_short(config, dims)
        if factors is None:
            return []
        return [
            constant(f"rope_factors_{kind}.weight", values, f"rope scaling, {kind}_factor")
            for kind, values in zip(("long", "short"), factors, strict=True)
        ]

    def values(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        """In the order of upstream's own `set_gguf_parameters`. The factor on attention comes
        first: upstream adds it while it makes the tensors, before everything else.
        """
        rope = rope_parameters(config)
        original = settings.require_int(rope, "original_max_position_embeddings")
        factor = {}
        if _long_and_short(config, dims) is not None:
            factor = {"rope.scaling.attn_factor": _attention_factor(dims.n_ctx, original)}
        return {
            **factor,
            "context_length": dims.n_ctx,
            "rope.scaling.original_context_length": original,
            "embedding_length": dims.n_embd,
            "feed_forward_length": dims.n_ff,
            "block_count": dims.n_layer,
            "attention.head_count": dims.n_head,
            "attention.head_count_kv": dims.n_head_kv,
            **norm_values(config),
            "rope.dimension_count": _count_rotated(rope, dims),
            "rope.freq_base": settings.require_float(global_rope(rope), "rope_theta"),
            "attention.sliding_window": settings.optional_int(config, "sliding_window") or 0,
        }


def _count_rotated(rope: Mapping[str, Any], dims: Dimensions) -> int:
    """How many values of a head are rotated."""
    part = settings.optional_float(rope, "partial_rotary_factor", 1.0) or 1.0
    return int(part * dims.n_embd) // dims.n_head


def _long_and_short(config: Config, dims: Dimensions) -> tuple[np.ndarray, np.ndarray] | None:
    """The divisors for contexts beyond and within the original one, each float32 of half the
    rotated values; None without scaling. Raises InputError for lists of another length.
    """
    rope = rope_parameters(config)
    kind = rope.get("rope_type")
    if kind in (None, "default"):
        return None
    if kind not in _LONGROPE:
        raise UnsupportedModelError(
            f"config.json: Phi-3 with rope scaling {quote(kind)} is unknown; known: longrope"
        )
    expected = _count_rotated(rope, dims) // 2
    found = []
    for key in ("long_factor", "short_factor"):
        values = settings.optional_list(rope, key, expected)
        if values is None:
            raise InputError(f"config.json: rope scaling {quote(kind)} has no {key}")
        if not all(is_finite(value) and value > 0 for value in values):
            raise InputError(f"config.json: {key} holds something else than positive numbers")
        found.append(np.array(values, dtype=np.float32))
    return found[0], found[1]


def _attention_factor(n_ctx: int, original: int) -> float:
    """LongRoPE's factor on attention: sqrt(1 + ln(scale) / ln(original)) for a stretched context
    (conversion/phi.py, `generate_extra_tensors`; arXiv 2402.13753).
    """
    scale = n_ctx / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 else 1.0
