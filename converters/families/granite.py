"""Granite 3 and 4. Upstream: conversion/granite.py, `GraniteModel`, `GraniteMoeModel` and
`GraniteHybridModel`; engine: src/models/granite.cpp, granite-hybrid.cpp.

A Llama with four multipliers (embedding, attention, residual, logits) and heads whose size is
always hidden size over heads. The mixture keeps its experts as stacked tensors with gate and up
fused, which are taken apart; a shared expert may stand beside them.

Granite 4 has Mamba2 layers with few attention layers between them (h-350m, h-1b, h-micro), the
same with experts (h-tiny, h-small), or attention in every layer (350M, 1B, Micro), which upstream
stores as `granite` or `granitemoe`. All are `granitemoehybrid` in `config.json`, with Mamba sizes,
which upstream writes even where nothing uses them. A dense layer's gate and up are fused under the
name of a shared expert. Hybrids have no rotary embeddings.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from boardfit.converters.families.decoder import DecoderFamily, read_defaults
from boardfit.converters.families.llama import Llama
from boardfit.converters.families.mamba2 import HybridFamily, Mamba2
from boardfit.converters.families.settings import Config, quote
from boardfit.edge.errors import InputError, UnsupportedModelError

_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


class Granite(Llama):
    """`GraniteForCausalLM`."""

    arch = "granite"

    def head_dim(self) -> int:
        computed, given = self.even_head_dim(), self.config.whole_or("head_dim", None)
        if given not in (None, computed):
            raise UnsupportedModelError(
                f"config.json: head_dim is {given}, but the engine computes Granite "
                f"with {computed} (hidden size over heads)"
            )
        return computed

    def has_head_dim(self) -> bool:
        return False

    def extra_metadata(self) -> dict[str, Any]:
        given = {name: self.config.number(key) for key, name in _MULTIPLIERS.items()}
        used = {name: value for name, value in given.items() if value}
        return {**super().extra_metadata(), **used}


class GraniteMoe(Granite):
    """`GraniteMoeForCausalLM` and `GraniteMoeSharedForCausalLM`."""

    arch = "granitemoe"
    parts = ("paired_attention", "norms")
    flagged: ClassVar[Mapping[str, str]] = {"attention_bias": "paired_attention_bias"}

    def layer_parts(self, layer: int) -> Sequence[str]:
        return (*super().layer_parts(layer), *self.feed_forward_parts())

    def feed_forward_parts(self) -> Sequence[str]:
        """Router, stacked experts, and the shared expert where there is one."""
        return ("granite_experts", *(["granite_shared"] if self._shared_values() else []))

    def extra_metadata(self) -> dict[str, Any]:
        return {**super().extra_metadata(), **self._shared_values()}

    def _shared_values(self) -> dict[str, int]:
        key = "shared_intermediate_size"
        n_shared = 0 if self.config.get(key) is None else self.config.whole(key, least=0)
        return {"expert_shared_feed_forward_length": n_shared} if n_shared else {}


class Granite4(GraniteMoe):
    """`GraniteMoeHybridForCausalLM` without Mamba layers and without experts."""

    arch = "granite"
    # Whether attention layers rotate queries and keys.
    rotates = True

    @classmethod
    def choose(cls, config: Config) -> type[DecoderFamily]:
        kinds, defaults = config.get("layer_types"), read_defaults(cls)
        if isinstance(kinds, list) and "mamba" in kinds:
            return Granite4Hybrid
        return Granite4Moe if Config({**defaults, **config}).get("num_local_experts") else Granite4

    def adjust(self) -> None:
        super().adjust()
        self.mixer, kind = self.find_mixer(), self.config.get("position_embedding_type")
        if self.kinds and (kind == "rope") is not self.rotates:
            raise UnsupportedModelError(
                f"config.json: position_embedding_type is {quote(kind)}, but the engine rotates "
                f"{'in every layer' if self.rotates else 'nowhere'} in this model"
            )
        if not self.n_expert:
            # The engine aborts where experts are used and there are none.
            self.config["num_experts_per_tok"] = 0

    @property
    def kinds(self) -> list[str]:
        n_layer = self.config.whole("num_hidden_layers")
        kinds = self.config.layer_kinds(("attention", "mamba"), length=n_layer)
        if kinds is None:
            raise InputError(
                f"config.json: layer_types is missing; expected a list of {n_layer} entries",
                next_step="download config.json again from the model's page",
            )
        return kinds

    def find_mixer(self) -> Mamba2:
        """Sizes of the Mamba layers, `mamba_expand` times as wide as the model."""
        inner = self.config.whole("mamba_expand") * self.config.whole("hidden_size")
        return Mamba2.from_config(self.config, inner)

    def feed_forward_parts(self) -> Sequence[str]:
        """Experts, or the one feed-forward part that goes by the name of a shared expert."""
        return super().feed_forward_parts() if self.n_expert else ("granite_mlp",)

    def per_layer(self) -> dict[str, Any]:
        return {"attention.head_count_kv": [self.dims.n_head_kv] * self.dims.n_layer}

    def extra_metadata(self) -> dict[str, Any]:
        own = {"rope.scaling.finetuned": self.rotates}
        return {**super().extra_metadata(), **self.mixer.values(), **own}


class Granite4Moe(Granite4):
    """`GraniteMoeHybridForCausalLM` without Mamba layers, with experts."""

    arch = "granitemoe"


class Granite4Hybrid(HybridFamily, Granite4):
    """`GraniteMoeHybridForCausalLM` with Mamba layers, dense or with experts."""

    arch = "granitehybrid"
    mark = ("mamba", "mamba.A_log")
    rotates = False

    def adjust(self) -> None:
        # transformers norms all groups as one, the engine each; at another factor it aborts.
        super().adjust()
        self.mixer.check_head_size(self.config, "mamba_expand × hidden_size")

    def find_mixer(self) -> Mamba2:
        return Granite4.find_mixer(self)

    def layer_parts(self, layer: int) -> Sequence[str]:
        if self.kinds[layer] == "attention":
            return super().layer_parts(layer)
        return ("norms", *self.feed_forward_parts())
