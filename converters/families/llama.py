"""Llama 2 and 3, what is built like them (TinyLlama, SmolLM2, CodeLlama, Yi, many fine-tunes), and
its descendants: Mistral, SmolLM3, SmolVLM.

Upstream: conversion/llama.py, conversion/mistral3.py. Quirks: query and key rows are reordered for
interleaved rotary embeddings; Llama 3.1's rope scaling becomes the tensor `rope_freqs.weight`;
`head_dim` is always written, because transformers' `LlamaConfig` fills it in.
"""

from collections.abc import Mapping
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, copies
from boardfit.converters.families.layout import Checkpoint, TensorRule, interleave_rows
from boardfit.converters.families.rope import llama3_rope_freqs, rope_parameters
from boardfit.converters.families.settings import Config
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError, UnsupportedModelError

_NO_ROPE_EVERY = 4


class Llama(DecoderFamily):
    """`LlamaForCausalLM`, with or without biases, tied or untied."""

    arch = "llama"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        config["head_dim"] = self.head_dim(config)
        return config

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        has_mlp_bias = settings.optional_bool(config, "mlp_bias", False)
        return {
            **interleaved_attention(dims),
            **attention_biases(config, dims, interleave=True),
            **copies(dims, "mlp", "norms", *(["mlp_bias"] if has_mlp_bias else [])),
        }

    def extra_tensors(self, config: Config, dims: Dimensions) -> list[TargetTensor]:
        return llama3_rope_freqs(rope_parameters(config), dims.head_dim)

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {"vocab_size": dims.n_vocab, "rope.dimension_count": dims.head_dim}


class SmolVlm(Llama):
    """The language model of `SmolVLMForConditionalGeneration` and Idefics 3. Its tensors are named
    `model.text_model.…`, and early configurations leave out the number of heads.
    """

    is_multimodal = True

    def rename(self, name: str) -> str | None:
        known = super().rename(name)
        return None if known is None else known.replace("text_model.", "", 1)


class SmolLM3(Llama):
    """`SmolLM3ForCausalLM`. Every fourth layer has no rotary embedding. The engine has that pattern
    built in (src/models/smollm3.cpp), so a checkpoint with another one is refused.
    """

    arch = "smollm3"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = DecoderFamily.config(self, checkpoint)
        n_layer = settings.require_int(config, "num_hidden_layers")
        given = settings.optional_list(config, "no_rope_layers", n_layer)
        step = settings.optional_int(config, "no_rope_layer_interval", _NO_ROPE_EVERY)
        built_in = [int((i + 1) % _NO_ROPE_EVERY != 0) for i in range(n_layer)]
        if (given is not None and given != built_in) or (given is None and step != _NO_ROPE_EVERY):
            raise UnsupportedModelError(
                "config.json: this SmolLM3 leaves rotary embeddings out of other layers than "
                f"every {_NO_ROPE_EVERY}th, which the engine cannot run"
            )
        if settings.optional_bool(config, "use_sliding_window", False):
            raise UnsupportedModelError(
                "config.json: use_sliding_window is true; the engine runs SmolLM3 with full "
                "attention only"
            )
        return config


class Mistral(Llama):
    """`MistralForCausalLM`, written as architecture `llama`, with `head_dim` only where
    `config.json` gives it. The engine does not use version 0.1's sliding window.
    """

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return DecoderFamily.config(self, checkpoint)

    def unused_window(self, config: Config) -> int | None:
        return settings.optional_int(config, "sliding_window")


class Mistral3(Mistral):
    """`Ministral3ForCausalLM`, which has yarn scaling and an attention temperature that grows with
    position, and `Mistral3ForConditionalGeneration` without its vision tower.
    """

    arch = "mistral3"
    is_multimodal = True

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        values = super().extra_metadata(config, dims)
        if config.get("model_type") != "ministral3":
            return values
        rope = rope_parameters(config)
        if rope.get("rope_type") != "yarn":
            raise InputError(
                f"config.json: ministral3 needs rope_parameters of rope_type yarn, "
                f"got {rope.get('rope_type')!r}"
            )
        scale = settings.require_float(rope, "llama_4_scaling_beta")
        log_multiplier = settings.require_float(rope, "mscale_all_dim")
        return {
            **values,
            "rope.scaling.yarn_log_multiplier": log_multiplier,
            "attention.temperature_scale": scale,
        }


def interleaved_attention(dims: Dimensions) -> dict[str, TensorRule]:
    """The four projections, query and key rows reordered: the engine's rope wants pairs."""
    return {**copies(dims, "attention"), **_query_and_key("weight", dims, dims.n_embd)}


def attention_biases(
    config: Config, dims: Dimensions, *, interleave: bool = False
) -> dict[str, TensorRule]:
    """Biases of the four projections where `attention_bias` asks for them."""
    if not settings.optional_bool(config, "attention_bias", False):
        return {}
    reordered = _query_and_key("bias", dims) if interleave else {}
    return {**copies(dims, "attention_bias"), **reordered}


def _query_and_key(kind: str, dims: Dimensions, *columns: int) -> dict[str, TensorRule]:
    sizes = {"q": (dims.q_rows, dims.n_head), "k": (dims.kv_rows, dims.n_head_kv)}
    return {
        f"self_attn.{letter}_proj.{kind}": interleave_rows(
            f"attn_{letter}.{kind}", rows, *columns, n_head=n_head
        )
        for letter, (rows, n_head) in sizes.items()
    }
