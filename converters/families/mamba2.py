"""Mamba2 layers, as Granite 4, Nemotron-H and Falcon-H1 have them. Upstream: conversion/mamba.py,
`Mamba2Model`; engine: src/models/mamba-base.cpp, `build_mamba2_layer`.

Such a layer has no KV cache. It keeps the last `d_conv - 1` inputs of its convolution and one
matrix of `d_state` columns per head, both in float32. Quirks: `A_log` becomes `-exp(A_log)`; the
norm is one row per group; the convolution loses its middle axis and stays float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import (
    Checkpoint,
    SourceTensor,
    TensorRule,
    copy,
    reshape,
    target_tensor,
    to_f32,
)
from boardfit.converters.families.settings import Config
from boardfit.converters.spec import TargetTensor
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

    def check_head_size(self, config: Config, widths: str) -> None:
        """Raises InputError when a stated size of heads is not `inner`, in words, over heads."""
        d_head, computed = config.get("mamba_d_head", "auto"), self.inner // self.n_head
        if d_head not in ("auto", computed):
            raise InputError(
                f"config.json: mamba_d_head is {settings.quote(d_head)}, but {widths} / "
                f"mamba_n_heads is {computed}"
            )

    def rules(self, prefix: str, *, has_norm: bool = True) -> dict[str, TensorRule]:
        """Rules of a layer's tensors by the names under `prefix`."""
        rows, columns = self.conv_rows, self.d_conv
        rules = {
            "in_proj.weight": copy("ssm_in.weight", self.in_rows, self.n_embd),
            "conv1d.weight": reshape("ssm_conv1d.weight", rows, 1, columns, to=(rows, columns)),
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

    def values(self, names: Sequence[str] = _ENTRIES) -> dict[str, int]:
        """The `ssm.*` entries, in the order given."""
        values = {
            "conv_kernel": self.d_conv,
            "state_size": self.d_state,
            "group_count": self.n_group,
            "inner_size": self.inner,
            "time_step_rank": self.n_head,
        }
        return {f"ssm.{name}": values[name] for name in names}


class HybridFamily(DecoderFamily):
    """A decoder of Mamba2 layers with few attention layers between them, without rotary embeddings
    (upstream: conversion/granite.py, `GraniteHybridModel`). Kinds of layers with a state are
    `mamba` and `attention`.
    """

    def mixer(self, config: Config) -> Mamba2:
        """Sizes of the Mamba layers."""
        raise NotImplementedError

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        self.mixer(config).check(config)
        return config

    def dimensions(self, config: Config) -> Dimensions:
        return replace(super().dimensions(config), n_ctx=CONTEXT_WITHOUT_ROPE)

    def state_values(self, config: Config, dims: Dimensions, layer: int) -> int | None:
        kind = self.kinds(config)[layer]
        if kind == "attention":
            return None
        return self.mixer(config).state_values if kind == "mamba" else 0

    def per_layer(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        attends = [kind == "attention" for kind in self.kinds(config)]
        return {"attention.head_count_kv": [dims.n_head_kv if here else 0 for here in attends]}

    def notes(self, checkpoint: Checkpoint) -> list[str]:
        """What is left out, and the context that the model was made for, which no entry states."""
        n_ctx = settings.require_int(self.config(checkpoint), "max_position_embeddings")
        made_for = (
            f"made for a context of {n_ctx} tokens; the file states {CONTEXT_WITHOUT_ROPE}, as "
            "upstream's does for models without rotary embeddings"
        )
        return [*super().notes(checkpoint), *([made_for] if n_ctx < CONTEXT_WITHOUT_ROPE else [])]


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
