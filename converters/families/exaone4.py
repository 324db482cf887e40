"""EXAONE 4. Upstream: conversion/exaone.py, `Exaone4Model`; engine: src/models/exaone4.cpp.

Quirks: norms stand after attention and feed-forward part, none before, and over each query and key
head. The engine knows the size of 64 layers by its layer count: only that one has sliding windows,
and layers that see the whole context rotate nothing there. Every other size must have no window.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf import GGUFValueType

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.gemma2 import sliding_layers
from boardfit.converters.families.layout import TensorRule, copy
from boardfit.converters.families.llama import attention_rules, mlp_rules
from boardfit.converters.families.qwen3 import head_norm_rules
from boardfit.converters.families.rope import llama3_rope_freqs, rope_parameters
from boardfit.converters.families.settings import Config, array, quote, uint32
from boardfit.converters.spec import KeyValue, TargetTensor
from boardfit.edge.errors import UnsupportedModelError

_LAYERS_WITH_WINDOWS = 64


class Exaone4(DecoderFamily):
    """`Exaone4ForCausalLM`."""

    arch = "exaone4"
    defaults = {  # noqa: RUF012 - ClassVar in the base
        "vocab_size": 102400,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "sliding_window": 4096,
    }

    def dimensions(self, config: Config) -> Dimensions:
        dims = super().dimensions(config)
        if dims.q_rows != dims.n_embd:
            raise UnsupportedModelError(
                f"config.json: head_dim {dims.head_dim} times {dims.n_head} heads is not "
                f"hidden_size {dims.n_embd}, which the engine's EXAONE 4 needs"
            )
        return dims

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **attention_rules(dims, interleave=False),
            **head_norm_rules(dims),
            **mlp_rules(dims),
            "post_attention_layernorm.weight": copy("post_attention_norm.weight", dims.n_embd),
            "post_feedforward_layernorm.weight": copy("post_ffw_norm.weight", dims.n_embd),
        }

    def extra_tensors(self, config: Config, dims: Dimensions) -> list[TargetTensor]:
        return llama3_rope_freqs(rope_parameters(config), dims.head_dim)

    def window(self, config: Config, layer: int) -> int | None:
        size = _window_size(config)
        return size if size is not None and _sliding(config)[layer] else None

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        size, attention = _window_size(config), f"{self.arch}.attention"
        entries = [uint32(f"{self.arch}.vocab_size", dims.n_vocab)]
        if size is not None:
            entries += [
                uint32(f"{attention}.sliding_window", size),
                array(f"{attention}.sliding_window_pattern", _sliding(config), GGUFValueType.BOOL),
            ]
        return entries


def _window_size(config: Config) -> int | None:
    """The window; None where no layer has one. Raises UnsupportedModelError where the engine,
    which goes by the number of layers, would compute something else.
    """
    size = settings.optional_int(config, "sliding_window")
    n_layer = settings.require_int(config, "num_hidden_layers")
    if (size is not None) != (n_layer == _LAYERS_WITH_WINDOWS):
        raise UnsupportedModelError(
            f"config.json: sliding_window is {size} with {n_layer} layers; the engine's EXAONE 4 "
            f"has windows with {_LAYERS_WITH_WINDOWS} layers, and with no other number"
        )
    return size


def _sliding(config: Config) -> list[bool]:
    """For each layer whether it has the window: `layer_types`, else a period or a pattern such as
    `LLLG`.
    """
    pattern = config.get("sliding_window_pattern", 4)
    if isinstance(pattern, str) and config.get("layer_types") is None:
        if not pattern or set(pattern) - {"L", "G"}:
            raise UnsupportedModelError(
                f"config.json: sliding_window_pattern is {quote(pattern)}; known here: a number, "
                "or letters L and G"
            )
        n_layer = settings.require_int(config, "num_hidden_layers")
        return [pattern[i % len(pattern)] == "L" for i in range(n_layer)]
    given = {} if isinstance(pattern, str) else config
    return sliding_layers(
        config, period=settings.optional_int(given, "sliding_window_pattern", 4) or 4
    )
