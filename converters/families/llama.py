"""Llama 2 and 3, and what is built like them: TinyLlama, SmolLM2, CodeLlama, Yi, many fine-tunes.

Upstream: conversion/llama.py, `LlamaModel`. Quirks: query and key rows are reordered for
interleaved rotary embeddings; Llama 3.1's rope scaling becomes the tensor `rope_freqs.weight`;
`head_dim` is always written, because transformers' `LlamaConfig` fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import TensorRule, copy, interleave_rows
from boardfit.converters.families.rope import llama3_rope_freqs, rope_parameters
from boardfit.converters.families.settings import Config, uint32
from boardfit.converters.spec import KeyValue, TargetTensor


class Llama(DecoderFamily):
    """`LlamaForCausalLM`, with or without biases, tied or untied."""

    arch = "llama"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        config["head_dim"] = self.head_dim(config)
        return config

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        biased = settings.optional_bool(config, "attention_bias", False)
        mlp_biased = settings.optional_bool(config, "mlp_bias", False)
        return {
            **attention_rules(dims, interleave=True),
            **(attention_bias_rules(dims, interleave=True, output=True) if biased else {}),
            **mlp_rules(dims),
            **(mlp_bias_rules(dims) if mlp_biased else {}),
            **norm_rules(dims),
        }

    def extra_tensors(self, config: Config, dims: Dimensions) -> list[TargetTensor]:
        return llama3_rope_freqs(rope_parameters(config), dims.head_dim)

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        return [
            uint32(f"{self.arch}.vocab_size", dims.n_vocab),
            uint32(f"{self.arch}.rope.dimension_count", dims.head_dim),
        ]


def attention_rules(dims: Dimensions, *, interleave: bool) -> dict[str, TensorRule]:
    """The four projections; query and key rows reordered where the engine's rope wants pairs."""
    return {
        **_query_and_key("weight", dims, interleave, dims.n_embd),
        "self_attn.v_proj.weight": copy("attn_v.weight", dims.kv_rows, dims.n_embd),
        "self_attn.o_proj.weight": copy("attn_output.weight", dims.n_embd, dims.q_rows),
    }


def attention_bias_rules(
    dims: Dimensions, *, interleave: bool, output: bool
) -> dict[str, TensorRule]:
    """Biases of query, key and value, and of the output projection where there is one."""
    rules = {
        **_query_and_key("bias", dims, interleave),
        "self_attn.v_proj.bias": copy("attn_v.bias", dims.kv_rows),
    }
    if output:
        rules["self_attn.o_proj.bias"] = copy("attn_output.bias", dims.n_embd)
    return rules


def mlp_rules(dims: Dimensions) -> dict[str, TensorRule]:
    """Gate, up and down projections."""
    return {
        "mlp.gate_proj.weight": copy("ffn_gate.weight", dims.n_ff, dims.n_embd),
        "mlp.up_proj.weight": copy("ffn_up.weight", dims.n_ff, dims.n_embd),
        "mlp.down_proj.weight": copy("ffn_down.weight", dims.n_embd, dims.n_ff),
    }


def mlp_bias_rules(dims: Dimensions) -> dict[str, TensorRule]:
    """Biases of the three projections."""
    return {
        "mlp.gate_proj.bias": copy("ffn_gate.bias", dims.n_ff),
        "mlp.up_proj.bias": copy("ffn_up.bias", dims.n_ff),
        "mlp.down_proj.bias": copy("ffn_down.bias", dims.n_embd),
    }


def norm_rules(dims: Dimensions) -> dict[str, TensorRule]:
    """The norms before attention and before the feed-forward part."""
    return {
        "input_layernorm.weight": copy("attn_norm.weight", dims.n_embd),
        "post_attention_layernorm.weight": copy("ffn_norm.weight", dims.n_embd),
    }


def _query_and_key(
    kind: str, dims: Dimensions, interleave: bool, *columns: int
) -> dict[str, TensorRule]:
    rules = {}
    sizes = {"q": (dims.q_rows, dims.n_head), "k": (dims.kv_rows, dims.n_head_kv)}
    for letter, (rows, n_head) in sizes.items():
        target = f"attn_{letter}.{kind}"
        rules[f"self_attn.{letter}_proj.{kind}"] = (
            interleave_rows(target, rows, *columns, n_head=n_head)
            if interleave
            else copy(target, rows, *columns)
        )
    return rules
