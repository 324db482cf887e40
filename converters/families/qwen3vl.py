"""Qwen3-VL, dense: the language model of a checkpoint that sees images.

Upstream: conversion/qwen3vl.py, `Qwen3VLTextModel`; engine: src/models/qwen3vl.cpp. A Qwen3 whose
rotary embeddings have sections. The number of layers that a vision tower feeds (deepstack) is
written, so that upstream's own vision file fits the artifact. Of the published sections (24, 20,
20) the engine rotates 62 of 64 pairs of a head. The two others would turn by 0.04 radians in
100,000 tokens (ggml/src/ggml-cpu/ops.cpp, `ggml_mrope_cache_init`).
"""

from __future__ import annotations

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import Dimensions
from boardfit.converters.families.layout import language_model_only
from boardfit.converters.families.qwen3 import Qwen3
from boardfit.converters.families.rope import rope_parameters
from boardfit.converters.families.settings import Config, uint32
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import InputError


class Qwen3Vl(Qwen3):
    """The language model of `Qwen3VLForConditionalGeneration`."""

    arch = "qwen3vl"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        **Qwen3.defaults,
        "max_position_embeddings": 128000,
        "rope_theta": 5000000.0,
    }

    def rename(self, name: str) -> str | None:
        return language_model_only(name)

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        if rope_parameters(config).get("mrope_section") is None:
            raise InputError(
                "config.json: mrope_section is missing in rope_scaling; expected 3 sizes"
            )
        tower = settings.optional_mapping(config, "vision_config") or {}
        fed = settings.optional_list(tower, "deepstack_visual_indexes")
        n_fed = 3 if fed is None else len(fed)  # transformers' default has 3
        return [
            *super().extra_metadata(config, dims),
            uint32(f"{self.arch}.n_deepstack_layers", n_fed),
        ]
