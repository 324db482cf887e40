"""Qwen3.5 (and 3.6), dense and mixture of experts: the language model of a checkpoint with images.

Upstream: conversion/qwen.py, `Qwen3_5TextModel` and `Qwen3_5MoeTextModel`; engine:
src/models/qwen35.cpp, qwen35moe.cpp. Quirks: three layers of four are gated delta nets, which keep
a state of one size instead of a KV cache; attention has a gate beside each query head; norm weights
are stored minus one, except the delta net's own; only a part of each head rotates. Where a delta
net has more value heads than key heads, the value heads change places: Hugging Face stores them by
key head, ggml repeats the key heads in turn. The MTP head, which guesses the next token but one, is
one more block behind the layers. It is left out unless it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import (
    DecoderFamily,
    Dimensions,
    active_parameters,
    copies,
)
from boardfit.converters.families.gemma import plus_one
from boardfit.converters.families.layout import (
    Checkpoint,
    ExpertStack,
    SourceTensor,
    TensorRule,
    constant,
    copy,
    reorder,
    to_f32,
)
from boardfit.converters.families.qwen import expert_stacks, fused_rules
from boardfit.converters.families.rope import global_rope, rope_parameters, rope_sections
from boardfit.converters.families.settings import Config
from boardfit.converters.spec import TargetTensor
from boardfit.device_profiles.shape import ModelShape
from boardfit.edge.errors import InputError, UnsupportedModelError

_MTP = re.compile(r"(?:model\.)?mtp\.(.+)")
_MTP_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
# What the checkpoint calls the parts around the MTP block → names that upstream uses on the way.
_MTP_PARTS = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}
_FUSED = re.compile(r"layers\.(\d+)\.mlp\.experts\.gate_up_proj(\.weight)?$")
# Set by `config` for the other hooks; missing in `config.json`.
_MTP_KEY, _FUSED_KEY = "boardfit: blocks of the MTP head", "boardfit: layers with fused experts"
_DEFAULT_SECTIONS = (11, 11, 10)  # conversion/qwen.py, `_QWEN35_DEFAULT_MROPE_SECTION`


@dataclass(frozen=True)
class DeltaNet:
    """Sizes of a gated delta net, checked against what the engine can do."""

    n_key: int
    n_value: int
    head_dim: int
    kernel: int

    @classmethod
    def from_config(cls, config: Config) -> DeltaNet:
        """Raises InputError or UnsupportedModelError that names the key."""
        key_dim = settings.require_int(config, "linear_key_head_dim")
        value_dim = settings.require_int(config, "linear_value_head_dim")
        if key_dim != value_dim:
            raise UnsupportedModelError(
                f"config.json: linear_key_head_dim is {key_dim} and linear_value_head_dim is "
                f"{value_dim}; the engine needs one size for both"
            )
        n_key = settings.require_int(config, "linear_num_key_heads")
        n_value = settings.require_int(config, "linear_num_value_heads")
        if n_value % n_key:
            raise InputError(
                f"config.json: linear_num_value_heads is {n_value}; expected a multiple of "
                f"linear_num_key_heads, {n_key}"
            )
        kernel = settings.require_int(config, "linear_conv_kernel_dim", least=2)
        return cls(n_key, n_value, key_dim, kernel)

    @property
    def value_rows(self) -> int:
        return self.n_value * self.head_dim

    @property
    def conv_rows(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.n_key * self.head_dim + self.value_rows

    @property
    def state_values(self) -> int:
        """`n_embd_r + n_embd_s` of src/llama-hparams.cpp."""
        return (self.kernel - 1) * self.conv_rows + self.head_dim * self.value_rows

    def value_order(self, size: int) -> np.ndarray:
        """Source index of each output index over the value heads of `size` each."""
        heads = np.arange(self.n_value * size).reshape(self.n_key, -1, size)
        order: np.ndarray = heads.swapaxes(0, 1).reshape(-1)
        return order

    def conv_order(self) -> np.ndarray:
        """As `value_order` over the convolution's channels; queries and keys stay."""
        kept = self.conv_rows - self.value_rows
        return np.concatenate([np.arange(kept), kept + self.value_order(self.head_dim)])

    def rules(self, n_embd: int) -> dict[str, TensorRule]:
        conv, values, heads = self.conv_rows, self.value_rows, self.n_value
        by_row, by_head = self.value_order(self.head_dim), self.value_order(1)
        by_channel = self.conv_order()
        projections = {
            "in_proj_qkv": ("attn_qkv", conv, by_channel),
            "in_proj_z": ("attn_gate", values, by_row),
            "in_proj_a": ("ssm_alpha", heads, by_head),
            "in_proj_b": ("ssm_beta", heads, by_head),
        }
        rules = {
            f"{name}.weight": reorder(f"{target}.weight", rows, n_embd, order=order)
            for name, (target, rows, order) in projections.items()
        }
        kernel, out = "ssm_conv1d.weight", "ssm_out.weight"
        rules |= {
            "A_log": decay_rule(heads, by_head),
            "dt_bias": reorder("ssm_dt.bias", heads, order=by_head),
            "conv1d.weight": reorder(kernel, conv, 1, self.kernel, order=by_channel),
            "norm.weight": copy("ssm_norm.weight", self.head_dim),
            "out_proj.weight": reorder(out, n_embd, values, order=by_row, axis=1),
        }
        return {f"linear_attn.{name}": rule for name, rule in rules.items()}


def decay_rule(n_heads: int, order: np.ndarray) -> TensorRule:
    """`-exp(A_log)`, rounded once to float32 (to float16 first if the source is float16).

    Libraries disagree about the last bit of an exponential: upstream's torch rounds one value of a
    hundred the other way.
    """

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        kind = np.float16 if source.dtype == "F16" else np.float32
        logarithms = to_f32(source.data[order], source.dtype).astype(np.float64)
        rows = -np.exp(logarithms).astype(np.float32).astype(kind).reshape(1, -1)
        return [constant(name, rows.reshape(-1), source.name)]

    return TensorRule("ssm_a", (n_heads,), build)


class Qwen35(DecoderFamily):
    """`Qwen3_5ForCausalLM`, and the language model of `Qwen3_5ForConditionalGeneration`."""

    arch = "qwen35"
    can_keep_mtp = True
    mark = ("linear_attention", "linear_attn.A_log")
    is_multimodal = True

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        settings.require_value(config, "attn_output_gate", True)
        settings.require_value(config, "attention_bias", False)
        config[_MTP_KEY] = self._mtp_blocks(config, checkpoint) if self.keep_mtp else 0
        return config

    def dimensions(self, config: Config) -> Dimensions:
        """With the MTP block counted as a layer, as the file counts it."""
        dims = super().dimensions(config)
        return replace(dims, n_layer=dims.n_layer + config[_MTP_KEY])

    def kinds(self, config: Config) -> list[str]:
        """Every fourth layer attends where `layer_types` is absent; the others are delta nets."""
        n_layer = settings.require_int(config, "num_hidden_layers")
        known = ("linear_attention", "full_attention")
        kinds = settings.layer_kinds(config, known, length=n_layer)
        if kinds is not None:
            return kinds
        every = settings.optional_int(config, "full_attention_interval", 4) or 4
        return [known[(index + 1) % every == 0] for index in range(n_layer)]

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        n_embd, n_main = dims.n_embd, dims.n_layer - config[_MTP_KEY]
        rules = {
            **self.feed_forward_rules(config, dims, layer),
            "input_layernorm.weight": plus_one("attn_norm.weight", n_embd),
            "post_attention_layernorm.weight": plus_one("post_attention_norm.weight", n_embd),
        }
        if layer < n_main and self.kinds(config)[layer] == "linear_attention":
            return {**DeltaNet.from_config(config).rules(n_embd), **rules}
        if layer >= n_main:
            rules |= {
                "eh_proj.weight": copy("nextn.eh_proj.weight", n_embd, 2 * n_embd),
                "enorm.weight": plus_one("nextn.enorm.weight", n_embd),
                "hnorm.weight": plus_one("nextn.hnorm.weight", n_embd),
                "shared_head.norm.weight": plus_one("nextn.shared_head_norm.weight", n_embd),
            }
        return {
            **rules,
            **copies(dims, "attention"),
            # Each query head is followed by its gate.
            "self_attn.q_proj.weight": copy("attn_q.weight", 2 * dims.q_rows, n_embd),
            "self_attn.q_norm.weight": plus_one("attn_q_norm.weight", dims.head_dim),
            "self_attn.k_norm.weight": plus_one("attn_k_norm.weight", dims.head_dim),
        }

    def feed_forward_rules(
        self, config: Config, dims: Dimensions, layer: int
    ) -> dict[str, TensorRule]:
        return copies(dims, "mlp")

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        norm = plus_one("output_norm.weight", dims.n_embd)
        return {**super().outer_rules(config, dims), "model.norm.weight": norm}

    def rename(self, name: str) -> str | None:
        known = super().rename(name)
        is_left_out = known is None or (_MTP.match(known) and not self.keep_mtp)
        return None if is_left_out else known

    def rename_in(self, config: Config, name: str) -> str | None:
        """MTP tensors under the names of a layer behind the others."""
        known = self.rename(name)
        mtp = _MTP.fullmatch(known or "")
        if mtp is None:
            return known
        n_main = settings.require_int(config, "num_hidden_layers")
        if layer := _MTP_LAYER.fullmatch(mtp[1]):
            return f"model.layers.{n_main + int(layer[1])}.{layer[2]}"
        part, _, rest = mtp[1].partition(".")
        return f"model.layers.{n_main}.{_MTP_PARTS.get(part, part)}.{rest}"

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        net, n_mtp, rope = DeltaNet.from_config(config), config[_MTP_KEY], rope_parameters(config)
        share = settings.optional_float(global_rope(rope), "partial_rotary_factor", 0.25)
        values = self.expert_values(config)
        if n_mtp:
            values["nextn_predict_layers"] = n_mtp
        values |= {
            "ssm.conv_kernel": net.kernel,
            "ssm.state_size": net.head_dim,
            "ssm.group_count": net.n_key,
            "ssm.time_step_rank": net.n_value,
            "ssm.inner_size": net.value_rows,
        }
        if config.get("layer_types") is not None:
            recurrent = [kind == "linear_attention" for kind in self.kinds(config)]
            values["attention.recurrent_layers"] = recurrent + [False] * n_mtp
        every = settings.optional_int(config, "full_attention_interval", 4) or 4
        values["full_attention_interval"] = every
        values["rope.dimension_count"] = int(dims.head_dim * (share or 0))
        has_sections = rope.get("mrope_section") is not None
        return values | ({} if has_sections else rope_sections(_DEFAULT_SECTIONS))

    def expert_values(self, config: Config) -> dict[str, Any]:
        return {}

    def state_values(self, config: Config, dims: Dimensions, layer: int) -> int | None:
        if self.kinds(config)[layer : layer + 1] != ["linear_attention"]:
            return None
        return DeltaNet.from_config(config).state_values

    def shape(self, checkpoint: Checkpoint) -> ModelShape:
        """Without the MTP block among the layers: the engine skips it when it generates."""
        whole, config = super().shape(checkpoint), self.config(checkpoint)
        n_main = whole.n_layer - config[_MTP_KEY]
        read = [t for t in self.tensors(checkpoint) if not t.name.startswith(f"blk.{n_main}.")]
        return replace(
            whole,
            n_layer=n_main,
            layers=whole.layers[:n_main],
            n_params_active=active_parameters(
                read, whole.n_expert, whole.n_expert_used, whole.n_embd
            ),
        )

    def _mtp_blocks(self, config: Config, checkpoint: Checkpoint) -> int:
        """Blocks of the MTP head that was asked for. Raises where there is none or several."""
        if not any(_MTP.match(name) for name in checkpoint.names()):
            raise InputError(
                "the checkpoint has no MTP head to keep (no tensor is named mtp.…)",
                next_step="leave out --mtp keep",
            )
        n_mtp = settings.optional_int(config, "mtp_num_hidden_layers", 1)
        if n_mtp != 1:
            raise UnsupportedModelError(
                f"config.json: mtp_num_hidden_layers is {n_mtp}; the engine runs an MTP head of "
                "one block",
                next_step="leave out --mtp keep",
            )
        return 1


class Qwen35Moe(Qwen35):
    """`Qwen3_5MoeForCausalLM`, and the language model of `Qwen3_5MoeForConditionalGeneration`."""

    arch = "qwen35moe"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        if settings.require_int(config, "num_experts_per_tok") > self.n_expert(config):
            raise InputError(
                f"config.json: num_experts_per_tok is {config['num_experts_per_tok']}, but "
                f"num_experts is {self.n_expert(config)}"
            )
        found = (_FUSED.search(self.rename_in(config, name) or "") for name in checkpoint.names())
        config[_FUSED_KEY] = {int(fused[1]): fused[2] or "" for fused in found if fused}
        return config

    def dimensions(self, config: Config) -> Dimensions:
        """A feed-forward size is optional: every layer has experts."""
        dims = super().dimensions({"intermediate_size": 1, **config})
        return dims if config.get("intermediate_size") is not None else replace(dims, n_ff=0)

    def values(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        values = super().values(config, dims)
        if not dims.n_ff:
            del values["feed_forward_length"]
        return values

    def feed_forward_rules(
        self, config: Config, dims: Dimensions, layer: int
    ) -> dict[str, TensorRule]:
        n_expert, n_embd = self.n_expert(config), dims.n_embd
        n_ff = settings.require_int(config, "moe_intermediate_size")
        n_shared = settings.require_int(config, "shared_expert_intermediate_size")
        fused = config[_FUSED_KEY].get(layer)
        return {
            **copies(dims, "qwen35_experts", n_expert=n_expert, n_shared=n_shared),
            **(fused_rules(fused, n_expert, n_ff, n_embd) if fused is not None else {}),
        }

    def expert_stacks(self, config: Config, dims: Dimensions, layer: int) -> Sequence[ExpertStack]:
        if layer in config[_FUSED_KEY]:
            return ()
        return expert_stacks(settings.require_int(config, "moe_intermediate_size"), dims.n_embd)

    def expert_values(self, config: Config) -> dict[str, Any]:
        return {
            "expert_feed_forward_length": settings.require_int(config, "moe_intermediate_size"),
            "expert_shared_feed_forward_length": settings.require_int(
                config, "shared_expert_intermediate_size"
            ),
        }
