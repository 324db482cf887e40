"""gpt-oss. Upstream: conversion/gpt_oss.py; engine: src/models/openai-moe.cpp.

Quirks: gate and up rows of an expert alternate in one tensor. Experts that are stored as MXFP4
become ggml's type of that name and stay in it under every recipe: no value is rounded. Experts that
are stored as floats lie transposed. Everything has a bias, each head a sink, every other layer a
window. The engine has no tied head, and the limits of the activation are built in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, copies, window_values
from boardfit.converters.families.gemma import sliding_layers, unusual_pattern
from boardfit.converters.families.layout import (
    Checkpoint,
    SourceTensor,
    TensorRule,
    from_rows,
    stack_reader,
    target_tensor,
)
from boardfit.converters.families.lazy import LazyRows
from boardfit.converters.families.settings import Config
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import UnsupportedModelError
from boardfit.edge.units import printable

# Set by `config` for the other hooks: read from the tensors.
_PACKED_KEY = "boardfit: weights stored as MXFP4"
_ENGINE_PERIOD = 2


class GptOss(DecoderFamily):
    """`GptOssForCausalLM`, its experts in MXFP4 or in floats."""

    arch = "gpt-oss"
    name_with_head = "gpt-oss"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        settings.require_value(config, "attention_bias", True)
        settings.require_value(config, "swiglu_limit", 7.0)
        config[_PACKED_KEY] = frozenset(
            name
            for name in checkpoint.names()
            if name.endswith(("experts.gate_up_proj", "experts.down_proj"))
            and checkpoint.tensor(name).mxfp4 is not None
        )
        return config

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        n_expert = self.n_expert(config)
        rules = copies(dims, "attention", "attention_bias", "gpt_oss", n_expert=n_expert)
        for name, targets, rows, columns in (
            ("gate_up_proj", ("ffn_gate_exps", "ffn_up_exps"), 2 * dims.n_ff, dims.n_embd),
            ("down_proj", ("ffn_down_exps",), dims.n_embd, dims.n_ff),
        ):
            full = f"model.layers.{layer}.mlp.experts.{name}"
            is_packed = full in config[_PACKED_KEY]
            stored = (rows, columns) if is_packed else (columns, rows)
            rules[f"mlp.experts.{name}"] = TensorRule(
                f"{targets[0]}.weight", (n_expert, *stored), _weights(targets)
            )
            rules[f"mlp.experts.{name}_bias"] = TensorRule(
                f"{targets[0]}.bias", (n_expert, rows), _biases(targets)
            )
        return rules

    def tensors(self, checkpoint: Checkpoint) -> list[TargetTensor]:
        """The MXFP4 tensors first, as upstream writes them."""
        made = super().tensors(checkpoint)
        return sorted(made, key=lambda tensor: tensor.source_type != "MXFP4")

    def sliding(self, config: Config) -> Sequence[bool]:
        return sliding_layers(config, period=_ENGINE_PERIOD)

    def notes(self, checkpoint: Checkpoint) -> list[str]:
        kept = self.config(checkpoint)[_PACKED_KEY]
        note = "the experts stay in MXFP4 as they are stored, under every recipe"
        return [*super().notes(checkpoint), *([note] if kept else [])]

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {
            **window_values(config),
            "expert_feed_forward_length": dims.n_ff,
            **unusual_pattern(self.sliding(config), _ENGINE_PERIOD),
        }


def _weights(targets: Sequence[str]) -> Any:
    """Every n-th row of each expert's matrix as a tensor of its own."""

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        if source.mxfp4 is None and isinstance(source.data, LazyRows):
            raise UnsupportedModelError(
                f"tensor {printable(source.name)} is quantized otherwise, or changed by an "
                "adapter; expected experts of gpt-oss as MXFP4, or as BF16, F16 or F32"
            )
        prefix = name.removesuffix(f"{targets[0]}.weight")
        rows = source.data.swapaxes(1, 2) if source.mxfp4 is None else source.mxfp4
        kind = source.dtype if source.mxfp4 is None else "MXFP4"
        columns = source.shape[1 if source.mxfp4 is None else 2]
        made = []
        for first, target in enumerate(targets):
            part = rows[:, first :: len(targets)]
            shape = (*part.shape[:2], columns)
            read = stack_reader([part[expert] for expert in range(len(part))])
            tensor = target_tensor(f"{prefix}{target}.weight", shape, kind, read, source.name)
            made.append(replace(tensor, keep="MXFP4") if kind == "MXFP4" else tensor)
        return made

    return build


def _biases(targets: Sequence[str]) -> Any:
    """Every n-th value of each expert's bias as a tensor of its own."""

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        prefix = name.removesuffix(f"{targets[0]}.bias")
        parts = [np.asarray(source.data[:, i :: len(targets)]) for i in range(len(targets))]
        return [
            from_rows(f"{prefix}{target}.bias", part.shape, source, part)
            for target, part in zip(targets, parts, strict=True)
        ]

    return build
