"""Qwen2, Qwen2.5, Qwen3 and Qwen3-VL, dense, and Qwen3's mixture of experts. Upstream:
conversion/qwen.py, conversion/qwen3vl.py; engine: src/models/qwen3moe.cpp, qwen3vl.cpp.

Quirks: no row reordering, because the engine rotates halves. Sliding windows of the larger Qwen2
models are neither written by upstream nor used by the engine.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from boardfit.converters.families.decoder import DecoderFamily
from boardfit.converters.families.rope import rope_parameters
from boardfit.edge.errors import InputError

_FUSED = re.compile(r"layers\.(\d+)\.mlp\.experts\.gate_up_proj(\.weight)?$")


class Qwen2(DecoderFamily):
    """`Qwen2ForCausalLM`: biases on query, key and value only."""

    arch = "qwen2"
    parts = ("attention", "qkv_bias", "mlp", "norms")

    def unused_window(self) -> int | None:
        used = self.config.flag("use_sliding_window")
        return self.config.whole_or("sliding_window", None) if used else None


class Qwen3(Qwen2):
    """`Qwen3ForCausalLM`: norms over each query and key head, heads of 128 values if `config.json`
    does not give their size, biases only where `attention_bias` asks for them.
    """

    arch = "qwen3"
    parts = ("attention", "head_norms", "mlp", "norms")
    flagged: ClassVar[Mapping[str, str]] = {"attention_bias": "attention_bias"}


class Qwen3Vl(Qwen3):
    """The language model of `Qwen3VLForConditionalGeneration`, whose rotary embeddings have
    sections.

    The number of layers that a vision tower feeds (deepstack) is written, so that upstream's own
    vision file fits the artifact. Of the published sections (24, 20, 20) the engine rotates 62 of
    64 pairs of a head. The two others would turn by 0.04 radians in 100,000 tokens
    (ggml/src/ggml-cpu/ops.cpp, `ggml_mrope_cache_init`).
    """

    arch = "qwen3vl"
    is_multimodal = True

    def extra_metadata(self) -> dict[str, Any]:
        if rope_parameters(self.config).get("mrope_section") is None:
            raise InputError(
                "config.json: mrope_section is missing in rope_scaling; expected 3 sizes"
            )
        fed = self.config.inner("vision_config").entries("deepstack_visual_indexes")
        # transformers' default has 3
        return {"n_deepstack_layers": 3 if fed is None else len(fed)}


class QwenExperts(DecoderFamily):
    """Experts in every layer. Checkpoints hold each expert's three matrices as tensors of their own
    (stacked here, lazily), or all experts of a layer as two tensors with gate and up fused.
    """

    def adjust(self) -> None:
        """Find how each layer stores its experts: `config.json` does not tell."""
        super().adjust()
        names = (_FUSED.search(self.rename(name) or "") for name in self.checkpoint.names())
        self.fused = {int(found[1]): found[2] or "" for found in names if found}

    def layer_parts(self, layer: int) -> Sequence[str]:
        fused = self.fused.get(layer)
        experts = "qwen_experts" if fused is None else f"qwen_fused{fused}"
        return (*super().layer_parts(layer), "qwen_router", experts)

    def extra_metadata(self) -> dict[str, Any]:
        n_ff = self.config.whole("moe_intermediate_size")
        return {"expert_feed_forward_length": n_ff, **super().extra_metadata()}


class Qwen3Moe(QwenExperts):
    """`Qwen3MoeForCausalLM`, with a router, which stays float32."""

    arch = "qwen3moe"
    parts = ("attention", "head_norms", "norms")
    flagged: ClassVar[Mapping[str, str]] = {"attention_bias": "attention_bias"}
