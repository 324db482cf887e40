"""Llama 2 and 3, what is built like them (TinyLlama, SmolLM2, CodeLlama, Yi, many fine-tunes), and
its descendants: Mistral, SmolLM3, SmolVLM.

Upstream: conversion/llama.py, conversion/mistral3.py. Quirks: query and key rows are reordered for
interleaved rotary embeddings; Llama 3.1's rope scaling becomes the tensor `rope_freqs.weight`;
`head_dim` is always written, because transformers' `LlamaConfig` fills it in.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from boardfit.converters.families.decoder import DecoderFamily
from boardfit.converters.families.rope import llama3_rope_freqs, rope_parameters
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError, UnsupportedModelError

_NO_ROPE_EVERY = 4


class Llama(DecoderFamily):
    """`LlamaForCausalLM`, with or without biases, tied or untied."""

    arch = "llama"
    parts: ClassVar[tuple[str, ...]] = ("paired_attention", "mlp", "norms")
    flagged: ClassVar[Mapping[str, str]] = {
        "attention_bias": "paired_attention_bias",
        "mlp_bias": "mlp_bias",
    }

    def has_head_dim(self) -> bool:
        return True

    def extra_tensors(self) -> list[TargetTensor]:
        return llama3_rope_freqs(rope_parameters(self.config), self.dims.head_dim)

    def extra_metadata(self) -> dict[str, Any]:
        return {"vocab_size": self.dims.n_vocab, "rope.dimension_count": self.dims.head_dim}


class SmolVlm(Llama):
    """The language model of `SmolVLMForConditionalGeneration` and Idefics 3. Its tensors are named
    `model.text_model.…`, and early configurations leave out the number of heads.
    """

    is_multimodal = True

    def rename(self, name: str) -> str | None:
        known = super().rename(name)
        return None if known is None else known.replace("text_model.", "", 1)


class Mistral(Llama):
    """`MistralForCausalLM`, written as architecture `llama`, with `head_dim` only where
    `config.json` gives it. The engine does not use version 0.1's sliding window.
    """

    def has_head_dim(self) -> bool:
        return DecoderFamily.has_head_dim(self)

    def unused_window(self) -> int | None:
        return self.config.whole_or("sliding_window", None)


class SmolLM3(Llama):
    """`SmolLM3ForCausalLM`. Every fourth layer has no rotary embedding. The engine has that pattern
    built in (src/models/smollm3.cpp), so a checkpoint with another one is refused.
    """

    arch = "smollm3"

    def has_head_dim(self) -> bool:
        return DecoderFamily.has_head_dim(self)

    def adjust(self) -> None:
        n_layer = self.config.whole("num_hidden_layers")
        given = self.config.entries("no_rope_layers", n_layer)
        step = self.config.whole_or("no_rope_layer_interval", _NO_ROPE_EVERY)
        built_in = [int((i + 1) % _NO_ROPE_EVERY != 0) for i in range(n_layer)]
        if (given is not None and given != built_in) or (given is None and step != _NO_ROPE_EVERY):
            raise UnsupportedModelError(
                "config.json: this SmolLM3 leaves rotary embeddings out of other layers than "
                f"every {_NO_ROPE_EVERY}th, which the engine cannot run"
            )


class Mistral3(Mistral):
    """`Ministral3ForCausalLM`, which has yarn scaling and an attention temperature that grows with
    position, and `Mistral3ForConditionalGeneration` without its vision tower.
    """

    arch = "mistral3"
    is_multimodal = True

    def extra_metadata(self) -> dict[str, Any]:
        values = super().extra_metadata()
        if self.config.get("model_type") != "ministral3":
            return values
        rope = rope_parameters(self.config)
        if rope.get("rope_type") != "yarn":
            raise InputError(
                f"config.json: ministral3 needs rope_parameters of rope_type yarn, "
                f"got {rope.get('rope_type')!r}"
            )
        return {
            **values,
            "rope.scaling.yarn_log_multiplier": rope.number("mscale_all_dim"),
            "attention.temperature_scale": rope.number("llama_4_scaling_beta"),
        }
