"""Granite 4 with attention in every layer (Nano 350M and 1B, Micro). Upstream:
conversion/granite.py, `GraniteHybridModel`, which stores such a model as `granite`.

Its `model_type` is `granitemoehybrid` and its configuration full of Mamba sizes, which upstream
writes although nothing uses them. What differs from Granite 3 in the weights: gate and up are fused
under the name of a shared expert. Models that do have Mamba layers or experts are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGUFValueType

from boardfit.converters.families import settings
from boardfit.converters.families.base import Checkpoint
from boardfit.converters.families.decoder import Dimensions
from boardfit.converters.families.granite import Granite
from boardfit.converters.families.layout import TensorRule, copy, split
from boardfit.converters.families.llama import attention_bias_rules, attention_rules, norm_rules
from boardfit.converters.families.settings import Config, array, boolean, uint32
from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import UnsupportedModelError


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

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        kinds = settings.optional_list(config, "layer_types")
        if kinds is None or any(kind != "attention" for kind in kinds):
            raise UnsupportedModelError(
                "config.json: a Granite 4 with Mamba layers is not a model that boardfit converts",
                next_step="come in through a GGUF of it, or take one with attention in every layer",
            )
        if self.n_expert(config) or self.n_expert_used(config):
            raise UnsupportedModelError(
                "config.json: a Granite 4 with experts is not a model that boardfit converts",
                next_step="come in through a GGUF of it",
            )
        if config.get("position_embedding_type") != "rope":
            raise UnsupportedModelError(
                "config.json: position_embedding_type is not rope, but the engine rotates in every "
                "layer of this model"
            )
        return config

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        biased = settings.optional_bool(config, "attention_bias", False)
        halves = (("ffn_gate.weight", dims.n_ff), ("ffn_up.weight", dims.n_ff))
        return {
            **attention_rules(dims, interleave=True),
            **(attention_bias_rules(dims, interleave=True, output=True) if biased else {}),
            "shared_mlp.input_linear.weight": split(halves, 2 * dims.n_ff, dims.n_embd),
            "shared_mlp.output_linear.weight": copy("ffn_down.weight", dims.n_embd, dims.n_ff),
            **norm_rules(dims),
        }

    def metadata(self, checkpoint: Checkpoint) -> list[KeyValue]:
        """Granite's entries, with the key-value heads as a list over the layers."""
        dims = self.dimensions(self.config(checkpoint))
        key = f"{self.arch}.attention.head_count_kv"
        per_layer = array(key, [dims.n_head_kv] * dims.n_layer, GGUFValueType.INT32)
        return [per_layer if entry.key == key else entry for entry in super().metadata(checkpoint)]

    def extra_metadata(self, config: Config, dims: Dimensions) -> list[KeyValue]:
        def size(key: str) -> int:
            return settings.require_int(config, key)

        return [
            *super().extra_metadata(config, dims),
            uint32(
                f"{self.arch}.expert_shared_feed_forward_length", size("shared_intermediate_size")
            ),
            uint32(f"{self.arch}.ssm.conv_kernel", size("mamba_d_conv")),
            uint32(f"{self.arch}.ssm.state_size", size("mamba_d_state")),
            uint32(f"{self.arch}.ssm.group_count", size("mamba_n_groups")),
            uint32(f"{self.arch}.ssm.inner_size", size("mamba_expand") * dims.n_embd),
            uint32(f"{self.arch}.ssm.time_step_rank", size("mamba_n_heads")),
            boolean(f"{self.arch}.rope.scaling.finetuned", True),
        ]
