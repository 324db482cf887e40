"""Nemotron-H, dense (Nano 4B, 9B, 12B) and with experts (Nemotron 3 Nano 30B-A3B, Super with latent
experts). Upstream: conversion/nemotron.py, `NemotronHModel`; engine: src/models/nemotron-h.cpp.

A layer is one thing only: a Mamba2 mixer, attention, a feed-forward part or experts. Which one is
in a string of letters (`hybrid_override_pattern`) or in a list of words (`layers_block_type`). The
metadata marks it by per-layer lists. There are no rotary embeddings. Feed-forward parts have a
squared ReLU and no gate. The head that guesses further tokens (`mtp.*`) is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, copies, head_values
from boardfit.converters.families.layout import (
    Checkpoint,
    ExpertStack,
    TensorRule,
    copy,
    interleave_rows,
)
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

    @classmethod
    def from_config(cls, config: Config) -> DecoderFamily:
        """By the kinds of layers: transformers 5 writes sizes of experts for dense models too."""
        kinds = config.get(cls.kinds_key) or config.get("hybrid_override_pattern")
        has_experts = isinstance(kinds, (list, str)) and ("moe" in kinds or "E" in kinds)
        return NemotronHMoe() if has_experts else NemotronH()

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """With the names of sizes that other families use."""
        config = super().config(checkpoint)
        settings.require_value(config, "mlp_hidden_act", "relu2")
        kinds = self.kinds(config)
        if {"mlp", "moe"} <= {*kinds}:
            raise UnsupportedModelError(
                f"config.json: {self.kinds_key} has both mlp and moe; the engine runs models with "
                "only one of them"
            )
        config["num_hidden_layers"] = len(kinds)
        if config.get("head_dim") is None:
            config["head_dim"] = settings.optional_int(config, "attention_head_dim", 128)
        config["layer_norm_eps"] = config["layer_norm_epsilon"]
        if config.get("rms_norm_eps") is not None:
            # transformers uses the other one for every norm, the engine this one.
            config["rms_norm_eps"] = config["layer_norm_epsilon"]
        for key in ("num_experts", "num_local_experts", "num_experts_per_tok"):
            config.pop(key, None)
        return config

    def has_head_dim(self, config: Config) -> bool:
        return False

    def kinds(self, config: Config) -> list[str]:
        """The kind of each layer: `mamba`, `attention`, `mlp` or `moe`."""
        known = tuple(_KINDS.values())
        kinds = settings.layer_kinds(config, known, key=self.kinds_key)
        if kinds is not None:
            return kinds
        key, n_layer = "hybrid_override_pattern", settings.require_int(config, "num_hidden_layers")
        letters = config.get(key)
        if not isinstance(letters, str) or len(letters) != n_layer:
            raise InputError(
                f"config.json: {key} is {quote(letters)}; expected {n_layer} letters, "
                "one per layer",
                next_step="check that config.json belongs to these weights",
            )
        given = {key: [_KINDS.get(letter, letter) for letter in letters]}
        return settings.layer_kinds(given, known, key=key) or []

    def mixer(self, config: Config) -> Mamba2:
        n_head = settings.require_int(config, "mamba_num_heads")
        sizes = {
            "mamba_n_heads": n_head,
            "mamba_n_groups": config["n_groups"],
            "mamba_d_state": config["ssm_state_size"],
            "mamba_d_conv": config["conv_kernel"],
        }
        inner = n_head * settings.require_int(config, "mamba_head_dim")
        return Mamba2.from_config({**sizes, **config}, inner)

    def rename(self, name: str) -> str | None:
        """Published checkpoints have `backbone.`, those that transformers 5 saves `model.`."""
        if name.startswith("mtp."):
            return None
        name = name.replace("backbone.", "model.", 1)
        return _RENAMED.get(name, name)

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        kind = self.kinds(config)[layer]
        if kind == "mamba":
            rules = self.mixer(config).rules("mixer.")
        elif kind == "attention":
            rules = _attention_rules(dims)
        else:
            rules = self.feed_forward_rules(config, dims)
        return {**rules, "norm.weight": copy("attn_norm.weight", dims.n_embd)}

    def feed_forward_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        has_bias = settings.optional_bool(config, "mlp_bias", False)
        return copies(dims, "nemotron_mlp", *(["nemotron_mlp_bias"] if has_bias else []))

    def per_layer(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        has_ffn = [kind in ("mlp", "moe") for kind in self.kinds(config)]
        widths = [dims.n_ff if here else 0 for here in has_ffn]
        return {**super().per_layer(config, dims), "feed_forward_length": widths}

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {
            "vocab_size": dims.n_vocab,
            # Nothing is rotated; upstream writes this number all the same.
            "rope.dimension_count": dims.n_embd // dims.n_head,
            **self.mixer(config).values(),
            "rope.scaling.finetuned": False,
            **head_values(dims),
        }


class NemotronHMoe(NemotronH):
    """`NemotronHForCausalLM` with experts, which may work on a shortened (latent) vector."""

    arch = "nemotron_h_moe"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        config["num_experts"] = config["n_routed_experts"]
        config["num_experts_per_tok"] = checkpoint.config.get(
            "num_experts_per_tok", self.defaults["num_experts_per_tok"]
        )
        config["intermediate_size"] = config["moe_intermediate_size"]
        # The engine has no biases here.
        settings.require_value(config, "mlp_bias", False)
        n_expert, n_group = self.n_expert(config), settings.require_int(config, "n_group")
        if not n_expert or n_expert % n_group or self.n_expert_used(config) > n_expert:
            raise InputError(
                f"config.json: n_routed_experts is {n_expert}; n_group ({n_group}) must divide it, "
                f"and num_experts_per_tok ({self.n_expert_used(config)}) must not be larger"
            )
        return config

    def feed_forward_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        n_expert = self.n_expert(config)
        n_shared = settings.require_int(config, "moe_shared_expert_intermediate_size")
        rules = copies(dims, "nemotron_experts", n_expert=n_expert, n_shared=n_shared)
        latent = settings.optional_int(config, "moe_latent_size")
        return rules | (copies(dims, "nemotron_latent", latent=latent) if latent else {})

    def expert_stacks(self, config: Config, dims: Dimensions, layer: int) -> Sequence[ExpertStack]:
        if self.kinds(config)[layer] != "moe":
            return ()
        width = settings.optional_int(config, "moe_latent_size") or dims.n_embd
        experts = "mixer.experts.{}."
        return (
            ExpertStack(f"{experts}down_proj.weight", "ffn_down_exps.weight", (width, dims.n_ff)),
            ExpertStack(f"{experts}up_proj.weight", "ffn_up_exps.weight", (dims.n_ff, width)),
        )

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        def size(key: str) -> int:
            return settings.require_int(config, key)

        latent = config.get("moe_latent_size") is not None
        return {
            "expert_group_count": size("n_group"),
            "expert_group_used_count": size("topk_group"),
            **super().extra_metadata(config, dims),
            "expert_feed_forward_length": size("moe_intermediate_size"),
            "expert_shared_feed_forward_length": size("moe_shared_expert_intermediate_size"),
            "expert_shared_count": size("n_shared_experts"),
            "expert_weights_norm": settings.optional_bool(config, "norm_topk_prob", True),
            "expert_weights_scale": settings.require_float(config, "routed_scaling_factor"),
            **({"moe_latent_size": size("moe_latent_size")} if latent else {}),
        }


def _attention_rules(dims: Dimensions) -> dict[str, TensorRule]:
    """Query and key rows are reordered as upstream does, although nothing is rotated."""
    q, k = (dims.q_rows, dims.n_head), (dims.kv_rows, dims.n_head_kv)
    return {
        "mixer.q_proj.weight": interleave_rows("attn_q.weight", q[0], dims.n_embd, n_head=q[1]),
        "mixer.k_proj.weight": interleave_rows("attn_k.weight", k[0], dims.n_embd, n_head=k[1]),
        **copies(dims, "nemotron_attention"),
    }
