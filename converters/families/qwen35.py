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

from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import (
    SourceTensor,
    TensorRule,
    constant,
    copy,
    reorder,
    to_f32,
)
from boardfit.converters.families.qwen import QwenExperts
from boardfit.converters.families.rope import global_rope, rope_parameters, rope_sections
from boardfit.converters.families.settings import Config
from boardfit.converters.spec import TargetTensor
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
        key_dim = config.whole("linear_key_head_dim")
        value_dim = config.whole("linear_value_head_dim")
        if key_dim != value_dim:
            raise UnsupportedModelError(
                f"config.json: linear_key_head_dim is {key_dim} and linear_value_head_dim is "
                f"{value_dim}; the engine needs one size for both"
            )
        n_key = config.whole("linear_num_key_heads")
        n_value = config.whole("linear_num_value_heads")
        if n_value % n_key:
            raise InputError(
                f"config.json: linear_num_value_heads is {n_value}; expected a multiple of "
                f"linear_num_key_heads, {n_key}"
            )
        kernel = config.whole("linear_conv_kernel_dim", least=2)
        return cls(n_key, n_value, key_dim, kernel)

    @property
    def value_rows(self) -> int:
        return self.n_value * self.head_dim

    @property
    def conv_rows(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.n_key * self.head_dim + self.value_rows

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
    parts = ("mlp",)
    outer_parts = ("outer_plus_one",)
    can_keep_mtp = True
    mark = ("linear_attention", "linear_attn.A_log")
    is_multimodal = True

    def adjust(self) -> None:
        self._n_mtp = self._mtp_blocks() if self.keep_mtp else 0
        self._net = DeltaNet.from_config(self.config)
        super().adjust()

    def dimensions(self) -> Dimensions:
        """With the MTP block counted as a layer, as the file counts it."""
        dims = super().dimensions()
        return replace(dims, n_layer=dims.n_layer + self._n_mtp)

    @property
    def kinds(self) -> list[str]:
        """Every fourth layer attends where `layer_types` is absent; the others are delta nets."""
        n_layer = self.n_layers()
        known = ("linear_attention", "full_attention")
        kinds = self.config.layer_kinds(known, length=n_layer)
        return kinds or [known[(i + 1) % self._full_interval == 0] for i in range(n_layer)]

    @property
    def _full_interval(self) -> int:
        return self.config.whole_or("full_attention_interval", 4)

    def layer_parts(self, layer: int) -> Sequence[str]:
        parts = [*super().layer_parts(layer), "qwen35_norms"]
        if self._is_recurrent(layer):
            return parts
        attention = ("attention", "qwen35_gated_queries", "head_norms_plus_one")
        mtp = ["qwen35_mtp"] if layer >= self.dims.n_layer - self._n_mtp else []
        return [*parts, *attention, *mtp]

    def layer_rules(self, layer: int) -> Mapping[str, TensorRule]:
        net = self._net.rules(self.dims.n_embd) if self._is_recurrent(layer) else {}
        return {**net, **super().layer_rules(layer)}

    def _is_recurrent(self, layer: int) -> bool:
        return self.kinds[layer : layer + 1] == ["linear_attention"]

    def rename(self, name: str) -> str | None:
        """MTP tensors under the names of a layer behind the others, where they are kept."""
        known = super().rename(name)
        mtp = _MTP.fullmatch(known or "")
        if mtp is None or not self.keep_mtp:
            return known if mtp is None else None
        n_main = self.config.whole("num_hidden_layers")
        if layer := _MTP_LAYER.fullmatch(mtp[1]):
            return f"model.layers.{n_main + int(layer[1])}.{layer[2]}"
        part, _, rest = mtp[1].partition(".")
        return f"model.layers.{n_main}.{_MTP_PARTS.get(part, part)}.{rest}"

    def extra_metadata(self) -> dict[str, Any]:
        config, net, rope = self.config, self._net, rope_parameters(self.config)
        share = global_rope(rope).number_or("partial_rotary_factor", 0.25)
        values: dict[str, Any] = {
            **super().extra_metadata(),
            **self.expert_values(),
            **({"nextn_predict_layers": self._n_mtp} if self._n_mtp else {}),
            "ssm.conv_kernel": net.kernel,
            "ssm.state_size": net.head_dim,
            "ssm.group_count": net.n_key,
            "ssm.time_step_rank": net.n_value,
            "ssm.inner_size": net.value_rows,
        }
        if config.get("layer_types") is not None:
            recurrent = [kind == "linear_attention" for kind in self.kinds]
            values["attention.recurrent_layers"] = recurrent + [False] * self._n_mtp
        values["full_attention_interval"] = self._full_interval
        values["rope.dimension_count"] = int(self.dims.head_dim * share)
        has_sections = rope.get("mrope_section") is not None
        return values | ({} if has_sections else rope_sections(_DEFAULT_SECTIONS))

    def expert_values(self) -> dict[str, Any]:
        return {}

    def _mtp_blocks(self) -> int:
        """Blocks of the MTP head that was asked for. Raises where there is none or several."""
        if not any(_MTP.match(name) for name in self.checkpoint.names()):
            raise InputError(
                "the checkpoint has no MTP head to keep (no tensor is named mtp.…)",
                next_step="leave out --mtp keep",
            )
        n_mtp = self.config.whole_or("mtp_num_hidden_layers", 1)
        if n_mtp != 1:
            raise UnsupportedModelError(
                f"config.json: mtp_num_hidden_layers is {n_mtp}; the engine runs an MTP head of "
                "one block",
                next_step="leave out --mtp keep",
            )
        return 1


class Qwen35Moe(Qwen35, QwenExperts):
    """`Qwen3_5MoeForCausalLM`, and the language model of `Qwen3_5MoeForConditionalGeneration`."""

    arch = "qwen35moe"
    parts = ("qwen35_experts",)

    def adjust(self) -> None:
        super().adjust()
        if self.config.whole("num_experts_per_tok") > self.n_expert:
            raise InputError(
                f"config.json: num_experts_per_tok is {self.config['num_experts_per_tok']}, but "
                f"num_experts is {self.n_expert}"
            )

    def dimensions(self) -> Dimensions:
        """A feed-forward size is optional: every layer has experts."""
        if self.config.get("intermediate_size") is not None:
            return super().dimensions()
        self.config["intermediate_size"] = 1
        return replace(super().dimensions(), n_ff=0)

    def values(self) -> dict[str, Any]:
        values = super().values()
        if not self.dims.n_ff:
            del values["feed_forward_length"]
        return values

    def expert_values(self) -> dict[str, Any]:
        shared = self.config.whole("shared_expert_intermediate_size")
        return {"expert_shared_feed_forward_length": shared}
