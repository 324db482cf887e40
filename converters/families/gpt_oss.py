"""gpt-oss. Upstream: conversion/gpt_oss.py; engine: src/models/openai-moe.cpp.

Quirks: gate and up rows of an expert alternate in one tensor. Experts that are stored as MXFP4
become ggml's type of that name and stay in it under every recipe: no value is rounded. Experts that
are stored as floats lie transposed. Everything has a bias, each head a sink, every other layer a
window. The engine has no tied head, and the limits of the activation are built in.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from boardfit.converters.families.gemma import WindowedFamily
from boardfit.converters.families.layout import (
    SourceTensor,
    TensorRule,
    from_rows,
    stack_reader,
    target_tensor,
)
from boardfit.converters.families.lazy import LazyRows
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import UnsupportedModelError
from boardfit.edge.units import printable


class GptOss(WindowedFamily):
    """`GptOssForCausalLM`, its experts in MXFP4 or in floats."""

    arch = "gpt-oss"
    parts = ("attention", "attention_bias", "gpt_oss")
    engine_period = 2

    def adjust(self) -> None:
        self._packed = frozenset(
            name
            for name in self.checkpoint.names()
            if name.endswith(("experts.gate_up_proj", "experts.down_proj"))
            and self.checkpoint.tensor(name).mxfp4 is not None
        )

    def layer_rules(self, layer: int) -> Mapping[str, TensorRule]:
        n_expert, n_ff, n_embd = self.n_expert, self.dims.n_ff, self.dims.n_embd
        rules = {**super().layer_rules(layer)}
        for name, targets, rows, columns in (
            ("gate_up_proj", ("ffn_gate_exps", "ffn_up_exps"), 2 * n_ff, n_embd),
            ("down_proj", ("ffn_down_exps",), n_embd, n_ff),
        ):
            is_packed = f"model.layers.{layer}.mlp.experts.{name}" in self._packed
            stored = (rows, columns) if is_packed else (columns, rows)
            rules[f"mlp.experts.{name}"] = TensorRule(
                f"{targets[0]}.weight", (n_expert, *stored), functools.partial(_weights, targets)
            )
            rules[f"mlp.experts.{name}_bias"] = TensorRule(
                f"{targets[0]}.bias", (n_expert, rows), functools.partial(_biases, targets)
            )
        return rules

    def make_tensors(self) -> list[TargetTensor]:
        """The MXFP4 tensors first, as upstream writes them."""
        return sorted(super().make_tensors(), key=lambda tensor: tensor.source_type != "MXFP4")

    def notes(self) -> list[str]:
        note = "the experts stay in MXFP4 as they are stored, under every recipe"
        return [*super().notes(), *([note] if self._packed else [])]

    def extra_metadata(self) -> dict[str, Any]:
        widths = {"expert_feed_forward_length": self.dims.n_ff}
        return {**self.window_values(), **widths, **self.unusual_pattern()}


def _weights(targets: Sequence[str], name: str, source: SourceTensor) -> list[TargetTensor]:
    """Every n-th row of each expert's matrix as a tensor of its own."""
    if source.mxfp4 is None and isinstance(source.data, LazyRows):
        raise UnsupportedModelError(
            f"tensor {printable(source.name)} is quantized otherwise, or changed by an "
            "adapter; expected experts of gpt-oss as MXFP4, or as BF16, F16 or F32"
        )
    prefix = name.removesuffix(f"{targets[0]}.weight")
    rows, kind, columns = source.mxfp4, "MXFP4", source.shape[2]
    if rows is None:
        rows, kind, columns = source.data.swapaxes(1, 2), source.dtype, source.shape[1]
    made = []
    for first, target in enumerate(targets):
        part = rows[:, first :: len(targets)]
        shape = (*part.shape[:2], columns)
        read = stack_reader([part[expert] for expert in range(len(part))])
        tensor = target_tensor(f"{prefix}{target}.weight", shape, kind, read, source.name)
        made.append(replace(tensor, keep="MXFP4") if kind == "MXFP4" else tensor)
    return made


def _biases(targets: Sequence[str], name: str, source: SourceTensor) -> list[TargetTensor]:
    """Every n-th value of each expert's bias as a tensor of its own."""
    prefix = name.removesuffix(f"{targets[0]}.bias")
    parts = [np.asarray(source.data[:, i :: len(targets)]) for i in range(len(targets))]
    return [
        from_rows(f"{prefix}{target}.bias", part.shape, source, part)
        for target, part in zip(targets, parts, strict=True)
    ]
