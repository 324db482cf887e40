"""Granite 4: Mamba2 layers with few attention layers between them (h-350m, h-1b, h-micro), the
same with experts (h-tiny, h-small), and attention in every layer (350M, 1B, Micro). Upstream:
conversion/granite.py, `GraniteHybridModel`, which stores models without Mamba layers as `granite`
or `granitemoe`; engine: src/models/granite-hybrid.cpp.

All are `granitemoehybrid` in `config.json`, with Mamba sizes, which upstream writes even where
nothing uses them. What differs from Granite 3 in the weights: a dense layer's gate and up are fused
under the name of a shared expert. Hybrids have no rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.granite import Granite, expert_rules, granite_attention_rules
from boardfit.converters.families.layout import TensorRule, copy, split
from boardfit.converters.families.llama import norm_rules
from boardfit.converters.families.mamba2 import HybridFamily, Mamba2
from boardfit.converters.families.settings import (
    Config,
    array,
    boolean,
    quote,
    replace_entry,
    uint32,
)
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import InputError, UnsupportedModelError

_KINDS = ("attention", "mamba")


class Granite4(Granite):
    """`GraniteMoeHybridForCausalLM` without Mamba layers and without experts."""

    defaults = {  # noqa: RUF012 - ClassVar in the base
        **Granite.defaults,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    }
    # Whether attention layers rotate queries and keys.
    rotates = True

    @classmethod
    def from_config(cls, config: Config) -> DecoderFamily:
        """The class for a configuration's kinds of layers."""
        kinds = config.get("layer_types")
        if isinstance(kinds, list) and "mamba" in kinds:
            return Granite4Hybrid()
        given = settings.with_defaults(config, cls.defaults)
        return Granite4Moe() if Granite4().n_expert(given) else Granite4()

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        layer_kinds(config)
        if (config.get("position_embedding_type") == "rope") is not self.rotates:
            raise UnsupportedModelError(
                f"config.json: position_embedding_type is "
                f"{quote(config.get('position_embedding_type'))}, but the engine rotates "
                f"{'in every layer' if self.rotates else 'nowhere'} in this model"
            )
        if not self.n_expert(config):
            # The engine aborts where experts are used and there are none.
            config["num_experts_per_tok"] = 0
        return config

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **granite_attention_rules(config, dims),
            **self.feed_forward_rules(config, dims),
            **norm_rules(dims),
        }

    def feed_forward_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        """Experts, or the one feed-forward part that goes by the name of a shared expert."""
        if self.n_expert(config):
            return expert_rules(config, dims)
        halves = (("ffn_gate.weight", dims.n_ff), ("ffn_up.weight", dims.n_ff))
        return {
            "shared_mlp.input_linear.weight": split(halves, 2 * dims.n_ff, dims.n_embd),
            "shared_mlp.output_linear.weight": copy("ffn_down.weight", dims.n_embd, dims.n_ff),
        }

    def metadata(self, checkpoint: Checkpoint) -> list[KeyValue]:
        """Granite's entries, with the key-value heads as a list over the layers."""
        dims = self.dimensions(self.config(checkpoint))
        heads = [dims.n_head_kv] * dims.n_layer
        per_layer = array(f"{self.arch}.attention.head_count_kv", heads, GGUFValueType.INT32)
        return replace_entry(super().metadata(checkpoint), per_layer)

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        shared = settings.require_int(config, "shared_intermediate_size", least=0)
        return [
            *super().extra_metadata(config, dims),
            *([uint32(f"{self.arch}.expert_shared_feed_forward_length", shared)] if shared else []),
            *self.mixer_entries(config),
        ]

    def mixer_entries(self, config: Config) -> list[KeyValue]:
        """Sizes of Mamba layers that these models have not, and that attention layers rotate."""
        return [
            *mixer_sizes(config).entries(self.arch),
            boolean(f"{self.arch}.rope.scaling.finetuned", True),
        ]


class Granite4Moe(Granite4):
    """`GraniteMoeHybridForCausalLM` without Mamba layers, with experts."""

    arch = "granitemoe"


class Granite4Hybrid(HybridFamily, Granite4):
    """`GraniteMoeHybridForCausalLM` with Mamba layers, dense or with experts."""

    arch = "granitehybrid"
    kinds_key = "layer_types"
    mixer_prefix = "mamba."
    rotates = False

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        # transformers norms all groups as one, the engine each; at another factor it aborts.
        settings.require_value(config, "mamba_n_groups", 1)
        settings.require_value(config, "mamba_expand", 2)
        d_head, mixer = config.get("mamba_d_head", "auto"), self.mixer(config)
        if d_head != "auto" and d_head != mixer.inner // mixer.n_head:
            raise InputError(
                f"config.json: mamba_d_head is {quote(d_head)}, but mamba_expand × hidden_size / "
                f"mamba_n_heads is {mixer.inner // mixer.n_head}"
            )
        return config

    def kinds(self, config: Config) -> list[str]:
        return layer_kinds(config)

    def mixer(self, config: Config) -> Mamba2:
        return mixer_sizes(config)

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        if layer_kinds(config)[layer] == "attention":
            return super().layer_rules(config, dims, layer)
        return {
            **self.mixer(config).rules(self.mixer_prefix),
            **self.feed_forward_rules(config, dims),
            **norm_rules(dims),
        }


def mixer_sizes(config: Config) -> Mamba2:
    """Sizes of the Mamba layers, `mamba_expand` times as wide as the model."""
    expand = settings.require_int(config, "mamba_expand")
    return Mamba2.from_config(config, expand * settings.require_int(config, "hidden_size"))


def layer_kinds(config: Config) -> list[str]:
    """`layer_types`, checked. Raises UnsupportedModelError for a kind that is unknown."""
    n_layer = settings.require_int(config, "num_hidden_layers")
    kinds = settings.optional_list(config, "layer_types", n_layer)
    if kinds is None:
        raise InputError(
            f"config.json: layer_types is missing; expected a list of {n_layer} entries",
            next_step="download config.json again from the model's page",
        )
    for kind in kinds:
        if kind not in _KINDS:
            raise UnsupportedModelError(
                f"config.json: layer_types has {quote(kind)}; known here: {', '.join(_KINDS)}"
            )
    return kinds
