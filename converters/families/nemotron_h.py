"""Nemotron-H, dense (Nano 4B, 9B, 12B) and with experts (Nemotron 3 Nano 30B-A3B, Super with latent
experts). Upstream: conversion/nemotron.py, `NemotronHModel`; engine: src/models/nemotron-h.cpp.

A layer is one thing only: a Mamba2 mixer, attention, a feed-forward part or experts. Which one is
in a string of letters (`hybrid_override_pattern`) or in a list of words (`layers_block_type`). The
metadata marks it by per-layer lists. There are no rotary embeddings. Feed-forward parts have a
squared ReLU and no gate. The head that guesses further tokens (`mtp.*`) is left out.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.converters.families.decoder import DecoderFamily
from boardfit.converters.families.mamba2 import HybridFamily, Mamba2
from boardfit.converters.families.settings import Config, quote
from boardfit.edge.errors import InputError, UnsupportedModelError

_KINDS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_RENAMED = {
    "model.embedding.weight": "model.embed_tokens.weight",
    "model.embeddings.weight": "model.embed_tokens.weight",
    "model.norm_f.weight": "model.norm.weight",
}


class NemotronH(HybridFamily):
    """`NemotronHForCausalLM` without experts."""

    arch = "nemotron_h"
    kinds_key = "layers_block_type"
    mark = ("mamba", "mixer.A_log")
    prefix = "mixer."

    @classmethod
    def choose(cls, config: Config) -> type[DecoderFamily]:
        """By the kinds of layers: transformers 5 writes sizes of experts for dense models too."""
        kinds = config.get(cls.kinds_key) or config.get("hybrid_override_pattern")
        has_experts = isinstance(kinds, (list, str)) and ("moe" in kinds or "E" in kinds)
        return NemotronHMoe if has_experts else NemotronH

    def adjust(self) -> None:
        """With the names of sizes that other families use."""
        super().adjust()
        config = self.config
        if {"mlp", "moe"} <= {*self.kinds}:
            raise UnsupportedModelError(
                f"config.json: {self.kinds_key} has both mlp and moe; the engine runs models with "
                "only one of them"
            )
        config["num_hidden_layers"] = len(self.kinds)
        if config.get("head_dim") is None:
            config["head_dim"] = config.whole_or("attention_head_dim", 128)
        config["layer_norm_eps"] = config["layer_norm_epsilon"]
        if config.get("rms_norm_eps") is not None:
            # transformers uses the other one for every norm, the engine this one.
            config["rms_norm_eps"] = config["layer_norm_epsilon"]
        for key in ("num_experts", "num_local_experts", "num_experts_per_tok"):
            config.pop(key, None)

    def has_head_dim(self) -> bool:
        return False

    @functools.cached_property
    def kinds(self) -> list[str]:
        """The kind of each layer: `mamba`, `attention`, `mlp` or `moe`."""
        known = tuple(_KINDS.values())
        kinds = self.config.layer_kinds(known, key=self.kinds_key)
        if kinds is not None:
            return kinds
        key, n_layer = "hybrid_override_pattern", self.config.whole("num_hidden_layers")
        letters = self.config.get(key)
        if not isinstance(letters, str) or len(letters) != n_layer:
            raise InputError(
                f"config.json: {key} is {quote(letters)}; expected {n_layer} letters, "
                "one per layer",
                next_step="check that config.json belongs to these weights",
            )
        given = Config({key: [_KINDS.get(letter, letter) for letter in letters]})
        return given.layer_kinds(known, key=key) or []

    def find_mixer(self) -> Mamba2:
        names = {
            "mamba_n_heads": "mamba_num_heads",
            "mamba_n_groups": "n_groups",
            "mamba_d_state": "ssm_state_size",
            "mamba_d_conv": "conv_kernel",
        }
        inner = self.config.whole("mamba_num_heads") * self.config.whole("mamba_head_dim")
        sizes = {name: self.config[key] for name, key in names.items()}
        return Mamba2.from_config(Config({**sizes, **self.config}), inner)

    def rename(self, name: str) -> str | None:
        """Published checkpoints have `backbone.`, those that transformers 5 saves `model.`."""
        if name.startswith("mtp."):
            return None
        name = name.replace("backbone.", "model.", 1)
        return _RENAMED.get(name, name)

    def layer_parts(self, layer: int) -> Sequence[str]:
        has_bias = self.config.flag("mlp_bias")
        parts: Mapping[str, tuple[str, ...]] = {
            "mamba": (),
            "attention": ("nemotron_attention",),
            "mlp": ("nemotron_mlp", "nemotron_mlp_bias") if has_bias else ("nemotron_mlp",),
            "moe": ("nemotron_experts", "nemotron_stacks"),
        }
        return (*parts[self.kinds[layer]], "nemotron_norm")

    def per_layer(self) -> dict[str, Any]:
        widths = [self.dims.n_ff * (kind in ("mlp", "moe")) for kind in self.kinds]
        return {**super().per_layer(), "feed_forward_length": widths}

    def extra_metadata(self) -> dict[str, Any]:
        return {
            "vocab_size": self.dims.n_vocab,
            # Nothing is rotated; upstream writes this number all the same.
            "rope.dimension_count": self.dims.n_embd // self.dims.n_head,
            **self.mixer.values(),
            "rope.scaling.finetuned": False,
            **self.head_values(),
        }


class NemotronHMoe(NemotronH):
    """`NemotronHForCausalLM` with experts, which may work on a shortened (latent) vector."""

    arch = "nemotron_h_moe"

    def adjust(self) -> None:
        n_used = self.config["num_experts_per_tok"]
        super().adjust()
        config = self.config
        config["num_experts"] = config["n_routed_experts"]
        config["num_experts_per_tok"] = n_used
        config["intermediate_size"] = config["moe_intermediate_size"]
        n_expert, n_group = self.n_expert, config.whole("n_group")
        if not n_expert or n_expert % n_group or self.n_expert_used > n_expert:
            raise InputError(
                f"config.json: n_routed_experts is {n_expert}; n_group ({n_group}) must divide it, "
                f"and num_experts_per_tok ({self.n_expert_used}) must not be larger"
            )

    @property
    def sizes(self) -> Mapping[str, int]:
        latent = self.config.whole_or("moe_latent_size", self.dims.n_embd)
        return {**super().sizes, "expert_embd": latent}

    def layer_parts(self, layer: int) -> Sequence[str]:
        is_latent = self.kinds[layer] == "moe" and self.config.get("moe_latent_size") is not None
        return (*super().layer_parts(layer), *(["nemotron_latent"] if is_latent else []))

    def extra_metadata(self) -> dict[str, Any]:
        config = self.config
        latent = config.whole_or("moe_latent_size", 0)
        return {
            "expert_group_count": config.whole("n_group"),
            "expert_group_used_count": config.whole("topk_group"),
            **super().extra_metadata(),
            "expert_feed_forward_length": config.whole("moe_intermediate_size"),
            "expert_shared_feed_forward_length": config.whole(
                "moe_shared_expert_intermediate_size"
            ),
            "expert_shared_count": config.whole("n_shared_experts"),
            "expert_weights_norm": config.flag("norm_topk_prob", default=True),
            "expert_weights_scale": config.number("routed_scaling_factor"),
            **({"moe_latent_size": latent} if latent else {}),
        }
