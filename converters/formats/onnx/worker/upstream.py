"""Adapt onnxruntime-genai 0.18's model builder to transformers 5, which rewrites every
configuration when it reads it. Each function names the family and what would happen without it.
"""

from __future__ import annotations

import functools
from typing import Any


def bridge(builder: Any) -> None:
    """Make the imported `builder` module read what transformers hands it."""
    details = builder.get_hf_details

    @functools.wraps(details)
    def get_hf_details(*arguments: Any, **named: Any) -> Any:
        found = details(*arguments, **named)
        older_keys(found["hf_config"])
        return found

    builder.get_hf_details = get_hf_details
    _scale_only_global_rope(builder.Gemma3Model)
    _leave_rope_out(builder.SmolLM3Model)


def older_keys(config: Any) -> None:
    """Add the keys that the builder asks for to a transformers configuration."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    full, local = rope.get("full_attention"), rope.get("sliding_attention")
    if isinstance(full, dict):  # Gemma 3: KeyError 'rope_type'
        config.rope_theta = full.get("rope_theta", 1e6)
        config.rope_local_base_freq = (local or {}).get("rope_theta", 1e4)
        config.rope_parameters = rope = {"rope_type": "default", **full}
    rope.setdefault("type", rope.get("rope_type"))  # Phi-3 with longrope: KeyError 'type'


def _scale_only_global_rope(gemma3: Any) -> None:
    """Gemma 3 from 4B on stretches the rotation of its global layers; the builder would stretch the
    sliding layers' too.
    """

    def make_rotary_embedding_multi_cache(self: Any) -> None:
        self.cos_cache_global_name, self.sin_cache_global_name = (
            "cos_cache_global",
            "sin_cache_global",
        )
        tables = super(gemma3, self).make_rotary_embedding_caches
        tables(cos_cache_name="cos_cache_global", sin_cache_name="sin_cache_global")
        stretched = self.rope_attrs["rescale_factors"]
        self.rope_attrs |= {
            "create_caches": True,
            "theta": self.rope_local_theta,
            "rescale_factors": 1,
        }
        self.cos_cache_local_name, self.sin_cache_local_name = "cos_cache_local", "sin_cache_local"
        tables(cos_cache_name="cos_cache_local", sin_cache_name="sin_cache_local")
        self.rope_attrs["rescale_factors"] = stretched

    gemma3.make_rotary_embedding_multi_cache = make_rotary_embedding_multi_cache


def _leave_rope_out(smollm3: Any) -> None:
    """SmolLM3's layers without rotation: the builder would add a RotaryEmbedding operator to them,
    whose `position_ids` input it has removed.
    """
    make_attention = smollm3.make_attention

    def without_rope(self: Any, layer_id: int, *arguments: Any, **named: Any) -> None:
        self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
        try:
            make_attention(self, layer_id, *arguments, **named)
        finally:
            self.attention_attrs["rope"] = True

    smollm3.make_attention = without_rope
