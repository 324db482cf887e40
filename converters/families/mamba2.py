"""Mamba2 layers, as Granite 4, Nemotron-H and Falcon-H1 have them. Upstream: conversion/mamba.py,
`Mamba2Model`; engine: src/models/mamba-base.cpp, `build_mamba2_layer`.

Such a layer has no KV cache. It keeps the last `d_conv - 1` inputs of its convolution and one
matrix of `d_state` columns per head, both in float32. Quirks: `A_log` becomes `-exp(A_log)`; the
norm is one row per group; the convolution loses its middle axis and stays float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.families import settings
from boardfit.converters.families.assembly import check_kinds
from boardfit.converters.families.base import Checkpoint, SourceTensor
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import (
    TensorRule,
    copy,
    reshape,
    target_tensor,
    to_f32,
)
from boardfit.converters.families.settings import Config, array, boolean, replace_entry, uint32
from boardfit.converters.spec import KeyValue, TargetTensor
from boardfit.device_profiles.shape import LayerShape
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.fields import is_finite

# Upstream writes this context length for models without rotary embeddings.
CONTEXT_WITHOUT_ROPE = 2**20
_ENTRIES = ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank")


@dataclass(frozen=True)
class Mamba2:
    """Sizes of a Mamba2 layer. `inner` is the width of all heads together."""

    n_embd: int
    inner: int
    n_head: int
    n_group: int
    d_state: int
    d_conv: int

    @classmethod
    def from_config(cls, config: Config, inner: int) -> Mamba2:
        """Read the `mamba_*` keys of `config.json`."""
        return cls(
            n_embd=settings.require_int(config, "hidden_size"),
            inner=inner,
            n_head=settings.require_int(config, "mamba_n_heads"),
            n_group=settings.require_int(config, "mamba_n_groups"),
            d_state=settings.require_int(config, "mamba_d_state"),
            d_conv=settings.require_int(config, "mamba_d_conv", least=2),
        )

    @property
    def conv_rows(self) -> int:
        """Channels of the convolution: the heads' inputs, and B and C of each group."""
        return self.inner + 2 * self.n_group * self.d_state

    @property
    def in_rows(self) -> int:
        """Rows of the projection inwards: the gate, the convolution's inputs, a step per head."""
        return self.inner + self.conv_rows + self.n_head

    @property
    def state_values(self) -> int:
        """Float32 values kept per sequence (src/llama-hparams.cpp, `n_embd_r + n_embd_s`)."""
        return (self.d_conv - 1) * self.conv_rows + self.d_state * self.inner

    def check(self, config: Config) -> None:
        """Raise for sizes that do not divide, and for what the engine's Mamba2 layer has not."""
        for what, count in (("mamba_n_heads", self.n_head), ("mamba_n_groups", self.n_group)):
            if self.inner % count:
                raise InputError(
                    f"config.json: {what} is {count}, which does not divide the Mamba layers' "
                    f"width of {self.inner}"
                )
        for key in ("mamba_proj_bias", "use_bias", "projectors_bias"):
            settings.require_value(config, key, False)
        for key in ("mamba_conv_bias", "use_conv_bias"):
            settings.require_value(config, key, True)
        for key in ("hidden_act", "mamba_hidden_act"):
            settings.require_value(config, key, "silu")
        limit = settings.optional_list(config, "time_step_limit", 2) or [0, None]
        if limit[0] or is_finite(limit[1]):
            raise UnsupportedModelError(
                f"config.json: time_step_limit is {settings.quote(limit)}; the engine limits no "
                "step (0 to Infinity)"
            )

    def rules(self, prefix: str, *, has_norm: bool = True) -> dict[str, TensorRule]:
        """Rules of a layer's tensors by the names under `prefix`."""
        rules = {
            "in_proj.weight": copy("ssm_in.weight", self.in_rows, self.n_embd),
            "conv1d.weight": reshape(
                "ssm_conv1d.weight",
                *(self.conv_rows, 1, self.d_conv),
                to=(self.conv_rows, self.d_conv),
            ),
            "conv1d.bias": copy("ssm_conv1d.bias", self.conv_rows),
            "dt_bias": copy("ssm_dt.bias", self.n_head),
            "A_log": _decay("ssm_a", self.n_head),
            "D": reshape("ssm_d", self.n_head, to=(self.n_head, 1)),
            "out_proj.weight": copy("ssm_out.weight", self.n_embd, self.inner),
        }
        if has_norm:
            groups = (self.n_group, self.inner // self.n_group)
            rules["norm.weight"] = reshape("ssm_norm.weight", self.inner, to=groups)
        return {prefix + name: rule for name, rule in rules.items()}

    def entries(
        self,
        arch: str,
        names: Sequence[str] = _ENTRIES,
    ) -> list[KeyValue]:
        """The `<arch>.ssm.*` entries, in the order given."""
        values = {
            "conv_kernel": self.d_conv,
            "state_size": self.d_state,
            "group_count": self.n_group,
            "inner_size": self.inner,
            "time_step_rank": self.n_head,
        }
        return [uint32(f"{arch}.ssm.{name}", values[name]) for name in names]


class HybridFamily(DecoderFamily):
    """A decoder of Mamba2 layers with few attention layers between them, without rotary embeddings
    (upstream: conversion/granite.py, `GraniteHybridModel`).

    Class data: `kinds_key` (the key that lists the layers' kinds), `mixer_prefix` (of the names of
    Mamba tensors in a layer).
    """

    kinds_key: ClassVar[str]
    mixer_prefix: ClassVar[str]

    def mixer(self, config: Config) -> Mamba2:
        """Sizes of the Mamba layers."""
        raise NotImplementedError

    def kinds(self, config: Config) -> list[str]:
        """The kind of each layer; those of state are `mamba` and `attention`."""
        raise NotImplementedError

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        self.mixer(config).check(config)
        names = [self.rename(name) for name in checkpoint.names()]
        check_kinds(
            names, self.kinds_key, self.kinds(config), {"mamba": f"{self.mixer_prefix}A_log"}
        )
        return config

    def dimensions(self, config: Config) -> Dimensions:
        return replace(super().dimensions(config), n_ctx=CONTEXT_WITHOUT_ROPE)

    def layer_shape(self, config: Config, dims: Dimensions, layer: int) -> LayerShape:
        kind = self.kinds(config)[layer]
        if kind == "attention":
            return super().layer_shape(config, dims, layer)
        state = self.mixer(config).state_values if kind == "mamba" else 0
        return LayerShape(0, dims.head_dim, dims.head_dim, state_values=state)

    def metadata(self, checkpoint: Checkpoint) -> list[KeyValue]:
        """The usual entries, with the key-value heads as a list over the layers."""
        config = self.config(checkpoint)
        n_head_kv = self.dimensions(config).n_head_kv
        heads = [n_head_kv if kind == "attention" else 0 for kind in self.kinds(config)]
        per_layer = array(f"{self.arch}.attention.head_count_kv", heads, GGUFValueType.INT32)
        return replace_entry(super().metadata(checkpoint), per_layer)

    def notes(self, checkpoint: Checkpoint) -> list[str]:
        """What is left out, and the context that the model was made for, which no entry states."""
        config = self.config(checkpoint)
        n_ctx = settings.require_int(config, "max_position_embeddings")
        made_for = (
            f"made for a context of {n_ctx} tokens; the file states {CONTEXT_WITHOUT_ROPE}, as "
            "upstream's does for models without rotary embeddings"
        )
        return [*super().notes(checkpoint), *([made_for] if n_ctx < CONTEXT_WITHOUT_ROPE else [])]

    def mixer_entries(self, config: Config) -> list[KeyValue]:
        """Sizes of the Mamba layers, and that attention layers rotate nothing."""
        return [
            *self.mixer(config).entries(self.arch),
            boolean(f"{self.arch}.rope.scaling.finetuned", False),
        ]


def _decay(target: str, n_head: int) -> TensorRule:
    """`-exp(A_log)`, one row per head. Computed in float64, so that the result is the nearest
    float32 on every processor; torch's is one unit in the last place off now and then.
    """

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        values = to_f32(source.data, source.dtype).reshape(-1, 1).astype(np.float64)

        def read(start: int, stop: int) -> np.ndarray:
            decay: np.ndarray = (-np.exp(values[start:stop])).astype(np.float32)
            return decay

        return [target_tensor(name, (n_head, 1), "F32", read, source.name)]

    return TensorRule(target, (n_head,), build)
