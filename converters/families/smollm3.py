"""SmolLM3. Upstream: conversion/llama.py, `SmolLM3Model`.

A Llama in which every fourth layer has no rotary embedding. The engine has that pattern built in
(src/models/smollm3.cpp), so a checkpoint with another one is refused.
"""

from __future__ import annotations

from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint
from boardfit.converters.families.decoder import DecoderFamily
from boardfit.converters.families.llama import Llama
from boardfit.edge.errors import UnsupportedModelError

NO_ROPE_EVERY = 4


class SmolLM3(Llama):
    """`SmolLM3ForCausalLM`."""

    arch = "smollm3"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        **DecoderFamily.defaults,
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
    }

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = DecoderFamily.config(self, checkpoint)
        n_layer = settings.require_int(config, "num_hidden_layers")
        given = settings.optional_list(config, "no_rope_layers", n_layer)
        step = settings.optional_int(config, "no_rope_layer_interval", NO_ROPE_EVERY)
        built_in = [int((i + 1) % NO_ROPE_EVERY != 0) for i in range(n_layer)]
        if (given is not None and given != built_in) or (given is None and step != NO_ROPE_EVERY):
            raise UnsupportedModelError(
                "config.json: this SmolLM3 leaves rotary embeddings out of other layers than "
                f"every {NO_ROPE_EVERY}th, which the engine cannot run"
            )
        if settings.optional_bool(config, "use_sliding_window", False):
            raise UnsupportedModelError(
                "config.json: use_sliding_window is true; the engine runs SmolLM3 with full "
                "attention only"
            )
        return config
