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

from boardfit.converters.families.decoder import DecoderFamily
from boardfit.converters.families.layout import constant
from boardfit.converters.families.rope import global_rope, rope_parameters
from boardfit.converters.families.settings import quote
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.fields import is_finite

# transformers reads the two older names as `longrope` for this family (Phi3Config,
# `_rope_scaling_adjustment`).
_LONGROPE = ("longrope", "su", "yarn")


class Phi3(DecoderFamily):
    """`Phi3ForCausalLM`."""

    arch = "phi3"
    parts = ("phi3", "norms")

    def head_dim(self) -> int:
        """Always hidden size over heads: the engine knows no other size for this family."""
        return self.even_head_dim()

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"qkv_rows": self.dims.q_rows + 2 * self.dims.kv_rows}

    def extra_tensors(self) -> list[TargetTensor]:
        return [
            constant(f"rope_factors_{kind}.weight", values, f"rope scaling, {kind}_factor")
            for kind, values in self._factors().items()
        ]

    def values(self) -> dict[str, Any]:
        """In the order of upstream's own `set_gguf_parameters`. The factor on attention comes
        first: upstream adds it while it makes the tensors, before everything else.
        """
        dims, rope = self.dims, rope_parameters(self.config)
        original = rope.whole("original_max_position_embeddings")
        factor = {}
        if self._factors():
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
            **self.norm_values(),
            "rope.dimension_count": self._count_rotated(),
            "rope.freq_base": global_rope(rope).number("rope_theta"),
            "attention.sliding_window": self.config.whole_or("sliding_window", 0),
        }

    def _count_rotated(self) -> int:
        """How many values of a head are rotated."""
        part = rope_parameters(self.config).number_or("partial_rotary_factor", 1.0) or 1.0
        return int(part * self.dims.n_embd) // self.dims.n_head

    def _factors(self) -> dict[str, np.ndarray]:
        """The divisors for contexts beyond (`long`) and within (`short`) the original one, each
        float32 of half the rotated values; empty without scaling. Raises InputError for lists of
        another length.
        """
        rope = rope_parameters(self.config)
        kind = rope.get("rope_type")
        if kind in (None, "default"):
            return {}
        if kind not in _LONGROPE:
            raise UnsupportedModelError(
                f"config.json: Phi-3 with rope scaling {quote(kind)} is unknown; known: longrope"
            )
        found = {}
        for name in ("long", "short"):
            values = rope.entries(f"{name}_factor", self._count_rotated() // 2)
            if values is None:
                raise InputError(f"config.json: rope scaling {quote(kind)} has no {name}_factor")
            if not all(is_finite(value) and value > 0 for value in values):
                raise InputError(
                    f"config.json: {name}_factor holds something else than positive numbers"
                )
            found[name] = np.array(values, dtype=np.float32)
        return found


def _attention_factor(n_ctx: int, original: int) -> float:
    """LongRoPE's factor on attention: sqrt(1 + ln(scale) / ln(original)) for a stretched context
    (conversion/phi.py, `generate_extra_tensors`; arXiv 2402.13753).
    """
    scale = n_ctx / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 else 1.0
