"""Qwen2, Qwen2.5, Qwen3 and Qwen3-VL, dense, and Qwen3's mixture of experts. Upstream:
conversion/qwen.py, conversion/qwen3vl.py; engine: src/models/qwen3moe.cpp, qwen3vl.cpp.

Quirks: no row reordering, because the engine rotates halves. Sliding windows of the larger Qwen2
models are neither written by upstream nor used by the engine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, copies
from boardfit.converters.families.layout import Checkpoint, ExpertStack, TensorRule, copy, split
from boardfit.converters.families.llama import attention_biases
from boardfit.converters.families.rope import rope_parameters
from boardfit.converters.families.settings import Config
from boardfit.edge.errors import InputError, UnsupportedModelError

_FUSED = "mlp.experts.gate_up_proj"
# Set by `config` for the other hooks: missing in `config.json`, read from the tensor names.
_FUSED_KEY = "boardfit: suffix of fused experts"


class Qwen2(DecoderFamily):
    """`Qwen2ForCausalLM`: biases on query, key and value only."""

    arch = "qwen2"
    parts = ("attention", "qkv_bias", "mlp", "norms")

    def unused_window(self, config: Config) -> int | None:
        used = settings.optional_bool(config, "use_sliding_window", False)
        return settings.optional_int(config, "sliding_window") if used else None


class Qwen3(Qwen2):
    """`Qwen3ForCausalLM`: norms over each query and key head, heads of 128 values if `config.json`
    does not give their size, biases only where `attention_bias` asks for them.
    """

    arch = "qwen3"
    parts = ("attention", "head_norms", "mlp", "norms")

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {**super().layer_rules(config, dims, layer), **attention_biases(config, dims)}


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

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        if rope_parameters(config).get("mrope_section") is None:
            raise InputError(
                "config.json: mrope_section is missing in rope_scaling; expected 3 sizes"
            )
        tower = settings.optional_mapping(config, "vision_config") or {}
        fed = settings.optional_list(tower, "deepstack_visual_indexes")
        # transformers' default has 3
        return {"n_deepstack_layers": 3 if fed is None else len(fed)}


class Qwen3Moe(DecoderFamily):
    """`Qwen3MoeForCausalLM`: experts in every layer, and a router, which stays float32.

    Checkpoints hold each expert's three matrices as tensors of their own (stacked here, lazily), or
    all experts of a layer as two tensors with gate and up fused (newer exports).
    """

    arch = "qwen3moe"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise UnsupportedModelError(
                "config.json: mlp_only_layers or decoder_sparse_step asks for layers without "
                "experts, which the engine's Qwen3-MoE does not have"
            )
        if not settings.optional_bool(config, "norm_topk_prob", False):
            raise UnsupportedModelError(
                "config.json: norm_topk_prob is not true, but the engine always normalises the "
                "chosen experts' weights; the answers would be wrong"
            )
        for name in checkpoint.names():
            if name.endswith((_FUSED, f"{_FUSED}.weight")):
                config[_FUSED_KEY] = ".weight" if name.endswith(".weight") else ""
                break
        return config

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        n_expert, fused = self.n_expert(config), config.get(_FUSED_KEY)
        n_ff = settings.require_int(config, "moe_intermediate_size") if fused is not None else 0
        return {
            **copies(dims, "attention", "head_norms", "norms"),
            **attention_biases(config, dims),
            "mlp.gate.weight": copy("ffn_gate_inp.weight", n_expert, dims.n_embd),
            **(fused_rules(fused, n_expert, n_ff, dims.n_embd) if fused is not None else {}),
        }

    def expert_stacks(self, config: Config, dims: Dimensions, layer: int) -> Sequence[ExpertStack]:
        if _FUSED_KEY in config:
            return ()
        return expert_stacks(settings.require_int(config, "moe_intermediate_size"), dims.n_embd)

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        n_ff = settings.require_int(config, "moe_intermediate_size")
        return {"expert_feed_forward_length": n_ff}


def expert_stacks(n_ff: int, n_embd: int) -> tuple[ExpertStack, ...]:
    """Experts of one layer, each with three tensors of its own."""
    inward, outward = (n_ff, n_embd), (n_embd, n_ff)
    return (
        ExpertStack("mlp.experts.{}.down_proj.weight", "ffn_down_exps.weight", outward),
        ExpertStack("mlp.experts.{}.gate_proj.weight", "ffn_gate_exps.weight", inward),
        ExpertStack("mlp.experts.{}.up_proj.weight", "ffn_up_exps.weight", inward),
    )


def fused_rules(suffix: str, n_expert: int, n_ff: int, n_embd: int) -> dict[str, TensorRule]:
    """All experts of one layer as two tensors; their names end in `suffix`."""
    halves = (("ffn_gate_exps.weight", n_ff), ("ffn_up_exps.weight", n_ff))
    down = copy("ffn_down_exps.weight", n_expert, n_embd, n_ff)
    return {
        f"{_FUSED}{suffix}": split(halves, n_expert, 2 * n_ff, n_embd),
        f"mlp.experts.down_proj{suffix}": down,
    }
