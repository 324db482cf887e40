"""Qwen3, mixture of experts. Upstream: conversion/qwen.py, `Qwen3MoeModel`; engine:
src/models/qwen3moe.cpp.

Quirks: Qwen3's norms over query and key heads; all layers have experts and a router, which stays
float32. Checkpoints hold each expert's three matrices as tensors of their own (stacked here,
lazily), or all experts of a layer as two tensors with gate and up fused (newer exports).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import ExpertStack, TensorRule, copy, split
from boardfit.converters.families.llama import attention_bias_rules, attention_rules, norm_rules
from boardfit.converters.families.qwen3 import head_norm_rules
from boardfit.converters.families.settings import Config, uint32
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import UnsupportedModelError

_FUSED = "mlp.experts.gate_up_proj"
# Set by `config` for the other hooks: missing in `config.json`, read from the tensor names.
_FUSED_KEY = "boardfit: suffix of fused experts"


class Qwen3Moe(DecoderFamily):
    """`Qwen3MoeForCausalLM`."""

    arch = "qwen3moe"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        **DecoderFamily.defaults,
        "vocab_size": 151936,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }

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
        biased = settings.optional_bool(config, "attention_bias", False)
        n_expert = self.n_expert(config)
        return {
            **attention_rules(dims, interleave=False),
            **(attention_bias_rules(dims, interleave=False, output=True) if biased else {}),
            **head_norm_rules(dims),
            "mlp.gate.weight": copy("ffn_gate_inp.weight", n_expert, dims.n_embd),
            **self._fused_rules(config, dims),
            **norm_rules(dims),
        }

    def expert_stacks(self, config: Config, dims: Dimensions, layer: int) -> Sequence[ExpertStack]:
        if _FUSED_KEY in config:
            return ()
        return expert_stacks(self._expert_ff(config), dims.n_embd)

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        return [uint32(f"{self.arch}.expert_feed_forward_length", self._expert_ff(config))]

    def _expert_ff(self, config: Config) -> int:
        return settings.require_int(config, "moe_intermediate_size")

    def _fused_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        suffix = config.get(_FUSED_KEY)
        if suffix is None:
            return {}
        return fused_rules(suffix, self.n_expert(config), self._expert_ff(config), dims.n_embd)


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
