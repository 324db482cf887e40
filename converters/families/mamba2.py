"""Mamba2 layers, as Granite 4, Nemotron-H and Falcon-H1 have them. Upstream: conversion/mamba.py,
`Mamba2Model`; engine: src/models/mamba-base.cpp, `build_mamba2_layer`.

Such a layer has no KV cache. It keeps the last `d_conv - 1` inputs of its convolution and one
matrix of `d_state` columns per head, both in float32. Quirks: `A_log` becomes `-exp(A_log)`; the
norm is one row per group; the convolution loses its middle axis and stays float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.layout import TensorRule
from boardfit.converters.families.settings import Config, quote
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.fields import is_finite

# Upstream writes this context length for models without rotary embeddings.
CONTEXT_WITHOUT_ROPE = 2**20
_ENTRIES = ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank")


@dataclass(frozen=True)
class Mamba2:
    """Sizes of a Mamba2 layer. `inner` is the width of all heads together."""

    inner: int
    n_head: int
    n_group: int
    d_state: int
    d_conv: int

    @classmethod
    def from_config(cls, config: Config, inner: int) -> Mamba2:
        """Read the `mamba_*` keys of `config.json`."""
        return cls(
            inner,
            n_head=config.whole("mamba_n_heads"),
            n_group=config.whole("mamba_n_groups"),
            d_state=config.whole("mamba_d_state"),
            d_conv=config.whole("mamba_d_conv", least=2),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of tensors. The convolution has channels for the heads' inputs, and for B and C of
        each group; the projection inwards has the gate, these, and a step per head.
        """
        conv_rows = self.inner + 2 * self.n_group * self.d_state
        return {
            "inner": self.inner, "n_step": self.n_head, "n_group": self.n_group,
            "group_width": self.inner // self.n_group, "d_conv": self.d_conv,
            "conv_rows": conv_rows, "in_rows": self.inner + conv_rows + self.n_head,
        }  # fmt: skip

    def check(self, config: Config) -> None:
        """Raise for sizes that do not divide, and for what the engine's Mamba2 layer has not."""
        for what, count in (("mamba_n_heads", self.n_head), ("mamba_n_groups", self.n_group)):
            if self.inner % count:
                raise InputError(
                    f"config.json: {what} is {count}, which does not divide the Mamba layers' "
                    f"width of {self.inner}"
                )
        limit = config.entries("time_step_limit", 2) or [0, None]
        if limit[0] or is_finite(limit[1]):
            raise UnsupportedModelError(
                f"config.json: time_step_limit is {quote(limit)}; the engine limits no "
                "step (0 to Infinity)"
            )

    def check_head_size(self, config: Config, widths: str) -> None:
        """Raises InputError when a stated size of heads is not `inner`, in words, over heads."""
        d_head, computed = config.get("mamba_d_head", "auto"), self.inner // self.n_head
        if d_head not in ("auto", computed):
            raise InputError(
                f"config.json: mamba_d_head is {quote(d_head)}, but {widths} / "
                f"mamba_n_heads is {computed}"
            )

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


class MambaFamily(DecoderFamily):
    """A decoder with Mamba2 mixers, whose tensors' names begin with `prefix` in a layer."""

    mixer: Mamba2
    prefix: ClassVar[str] = "mamba."

    def find_mixer(self) -> Mamba2:
        """Sizes of the Mamba layers."""
        raise NotImplementedError

    def adjust(self) -> None:
        super().adjust()
        self.mixer = self.find_mixer()
        self.mixer.check(self.config)

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.mixer.sizes

    def mixer_rules(self, *parts: str) -> dict[str, TensorRule]:
        return {self.prefix + name: rule for name, rule in self.rules(*parts).items()}


class HybridFamily(MambaFamily):
    """A decoder of Mamba2 layers with few attention layers between them, without rotary embeddings
    (upstream: conversion/granite.py, `GraniteHybridModel`). Kinds of layers with a state are
    `mamba` and `attention`.
    """

    def dimensions(self) -> Dimensions:
        return replace(super().dimensions(), n_ctx=CONTEXT_WITHOUT_ROPE)

    def layer_rules(self, layer: int) -> Mapping[str, TensorRule]:
        is_mamba = self.kinds[layer] == "mamba"
        mixer = self.mixer_rules("mamba2", "mamba2_norm") if is_mamba else {}
        return {**mixer, **super().layer_rules(layer)}

    def per_layer(self) -> dict[str, Any]:
        n_head_kv = self.dims.n_head_kv
        return {
            "attention.head_count_kv": [n_head_kv * (kind == "attention") for kind in self.kinds]
        }

    def notes(self) -> list[str]:
        """What is left out, and the context that the model was made for, which no entry states."""
        n_ctx = self.config.whole("max_position_embeddings")
        made_for = (
            f"made for a context of {n_ctx} tokens; the file states {CONTEXT_WITHOUT_ROPE}, as "
            "upstream's does for models without rotary embeddings"
        )
        return [*super().notes(), *([made_for] if n_ctx < CONTEXT_WITHOUT_ROPE else [])]
