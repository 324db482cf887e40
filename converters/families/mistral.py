"""Mistral, Ministral 3 and the language model of Mistral Small 3.

Upstream: conversion/llama.py (`MistralForCausalLM`), conversion/mistral3.py. Quirks: Mistral is
written as architecture `llama`, with `head_dim` only where `config.json` gives it; version 0.1's
sliding window is not written, and the engine attends to the whole context. Ministral 3 has an
architecture of its own, yarn scaling and an attention temperature that grows with position.
"""

from __future__ import annotations

from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import language_model_only
from boardfit.converters.families.llama import Llama
from boardfit.converters.families.rope import rope_parameters
from boardfit.converters.families.settings import Config, float32
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import InputError


class Mistral(Llama):
    """`MistralForCausalLM`: a Llama whose configuration leaves `head_dim` open."""

    defaults = {**DecoderFamily.defaults, "num_key_value_heads": 8}  # noqa: RUF012

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return DecoderFamily.config(self, checkpoint)

    def unused_window(self, config: Config) -> int | None:
        return settings.optional_int(config, "sliding_window")


class Mistral3(Mistral):
    """`Ministral3ForCausalLM`, and `Mistral3ForConditionalGeneration` without its vision tower."""

    arch = "mistral3"

    def rename(self, name: str) -> str | None:
        return language_model_only(name)

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        entries = super().extra_metadata(config, dims)
        if config.get("model_type") == "ministral3":
            rope = rope_parameters(config)
            if rope.get("rope_type") != "yarn":
                raise InputError(
                    f"config.json: ministral3 needs rope_parameters of rope_type yarn, "
                    f"got {rope.get('rope_type')!r}"
                )
            scale = settings.require_float(rope, "llama_4_scaling_beta")
            entries += [
                float32(
                    f"{self.arch}.rope.scaling.yarn_log_multiplier",
                    settings.require_float(rope, "mscale_all_dim"),
                ),
                float32(f"{self.arch}.attention.temperature_scale", scale),
            ]
        return entries
