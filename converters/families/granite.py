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

from collections.abc import Mapping
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, copies
from boardfit.converters.families.layout import Checkpoint, TensorRule, copy, split
from boardfit.converters.families.llama import Llama, attention_biases, interleaved_attention
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

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        n_embd = settings.require_int(config, "hidden_size")
        computed = n_embd // settings.require_int(config, "num_attention_heads")
        if config["head_dim"] != computed:
            raise UnsupportedModelError(
                f"config.json: head_dim is {config['head_dim']}, but the engine computes Granite "
                f"with {computed} (hidden size over heads)"
            )
        return config

    def has_head_dim(self, config: Config) -> bool:
        return False

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        given = {n: settings.require_float(config, key) for key, n in _MULTIPLIERS.items()}
        used = {name: value for name, value in given.items() if value}
        return {**super().extra_metadata(config, dims), **used}


class GraniteMoe(Granite):
    """`GraniteMoeForCausalLM` and `GraniteMoeSharedForCausalLM`."""

    arch = "granitemoe"

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **interleaved_attention(dims),
            **attention_biases(config, dims, interleave=True),
            **expert_rules(config, dims),
            **copies(dims, "norms"),
        }

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {**super().extra_metadata(config, dims), **_shared_values(config)}


class Granite4(Granite):
    """`GraniteMoeHybridForCausalLM` without Mamba layers and without experts."""

    # Whether attention layers rotate queries and keys.
    rotates = True

    @classmethod
    def from_config(cls, config: Config) -> DecoderFamily:
        kinds = config.get("layer_types")
        if isinstance(kinds, list) and "mamba" in kinds:
            return Granite4Hybrid()
        dense = Granite4()
        return Granite4Moe() if dense.n_expert({**dense.defaults, **config}) else dense

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        self.kinds(config)
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

    def kinds(self, config: Config) -> list[str]:
        n_layer = settings.require_int(config, "num_hidden_layers")
        kinds = settings.layer_kinds(config, ("attention", "mamba"), length=n_layer)
        if kinds is None:
            raise InputError(
                f"config.json: layer_types is missing; expected a list of {n_layer} entries",
                next_step="download config.json again from the model's page",
            )
        return kinds

    def mixer(self, config: Config) -> Mamba2:
        """Sizes of the Mamba layers, `mamba_expand` times as wide as the model."""
        expand = settings.require_int(config, "mamba_expand")
        return Mamba2.from_config(config, expand * settings.require_int(config, "hidden_size"))

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        return {
            **interleaved_attention(dims),
            **attention_biases(config, dims, interleave=True),
            **self.feed_forward_rules(config, dims),
            **copies(dims, "norms"),
        }

    def feed_forward_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        """Experts, or the one feed-forward part that goes by the name of a shared expert."""
        if self.n_expert(config):
            return expert_rules(config, dims)
        return _shared_rules(dims, dims.n_ff, "")

    def per_layer(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {"attention.head_count_kv": [dims.n_head_kv] * dims.n_layer}

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {
            **super().extra_metadata(config, dims),
            **_shared_values(config),
            **self.mixer(config).values(),
            "rope.scaling.finetuned": self.rotates,
        }


class Granite4Moe(Granite4):
    """`GraniteMoeHybridForCausalLM` without Mamba layers, with experts."""

    arch = "granitemoe"


class Granite4Hybrid(HybridFamily, Granite4):
    """`GraniteMoeHybridForCausalLM` with Mamba layers, dense or with experts."""

    arch = "granitehybrid"
    mark = ("mamba", "mamba.A_log")
    rotates = False

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        # transformers norms all groups as one, the engine each; at another factor it aborts.
        settings.require_value(config, "mamba_n_groups", 1)
        settings.require_value(config, "mamba_expand", 2)
        self.mixer(config).check_head_size(config, "mamba_expand × hidden_size")
        return config

    def mixer(self, config: Config) -> Mamba2:
        return Granite4.mixer(self, config)

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        if self.kinds(config)[layer] == "attention":
            return super().layer_rules(config, dims, layer)
        return {
            **self.mixer(config).rules("mamba."),
            **self.feed_forward_rules(config, dims),
            **copies(dims, "norms"),
        }


def expert_rules(config: Config, dims: Dimensions) -> dict[str, TensorRule]:
    """Router, stacked experts, and the shared expert where there is one."""
    n_expert = settings.require_int(config, "num_local_experts")
    halves = (("ffn_gate_exps.weight", dims.n_ff), ("ffn_up_exps.weight", dims.n_ff))
    moe, outward = "block_sparse_moe", (n_expert, dims.n_embd, dims.n_ff)
    n_shared = _shared_ff(config)
    return {
        f"{moe}.router.layer.weight": copy("ffn_gate_inp.weight", n_expert, dims.n_embd),
        f"{moe}.input_linear.weight": split(halves, n_expert, 2 * dims.n_ff, dims.n_embd),
        f"{moe}.output_linear.weight": copy("ffn_down_exps.weight", *outward),
        **(_shared_rules(dims, n_shared, "_shexp") if n_shared else {}),
    }


def _shared_ff(config: Config) -> int:
    if config.get("shared_intermediate_size") is None:
        return 0
    return settings.require_int(config, "shared_intermediate_size", least=0)


def _shared_values(config: Config) -> dict[str, Any]:
    n_shared = _shared_ff(config)
    return {"expert_shared_feed_forward_length": n_shared} if n_shared else {}


def _shared_rules(dims: Dimensions, n_ff: int, suffix: str) -> dict[str, TensorRule]:
    halves = ((f"ffn_gate{suffix}.weight", n_ff), (f"ffn_up{suffix}.weight", n_ff))
    return {
        "shared_mlp.input_linear.weight": split(halves, 2 * n_ff, dims.n_embd),
        "shared_mlp.output_linear.weight": copy(f"ffn_down{suffix}.weight", dims.n_embd, n_ff),
    }
