"""Gemma 3n, the language model: text-only checkpoints and the text part of multimodal ones.

Upstream: conversion/gemma.py, `Gemma3NModel`; engine: src/models/gemma3n.cpp. Quirks: four copies
of the hidden state that each layer predicts and corrects (AltUp), a low-rank detour beside
attention (Laurel), sparse activations in the first ten layers, an embedding of each layer's own
whose table lacks the rows of images and sounds (zeros here), and last layers without keys and
values of their own. The engine has most sizes of the two published models built in and reads
neither the entries for them nor the cap on logits, so that other models are refused.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boardfit.converters.families.gemma4 import SharedLayers
from boardfit.converters.families.layout import (
    ExpertStack,
    SourceTensor,
    TensorRule,
    matrix,
    target_tensor,
)
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import UnsupportedModelError

# Sparsity → how many standard deviations above the mean a value must lie: the inverse of the normal
# distribution in float32, as torch computes it.
_DEVIATIONS = {0.95: 1.6448535919189453, 0.0: -np.inf}
_N_ALTUP = 4
# Built into the engine (src/llama-hparams.h, src/models/models.h, src/models/gemma3n.cpp).
_ENGINE_LAYERS_WITH_KV = 20
_ENGINE_SPARSE_LAYERS = 10


class Gemma3n(SharedLayers):
    """`Gemma3nForCausalLM`, and the language model of `Gemma3nForConditionalGeneration`."""

    arch = "gemma3n"
    outer_parts = ("outer", "gemma_per_layer_outer")
    engine_period = 5

    @property
    def sliding(self) -> Sequence[bool]:
        return self.find_sliding(self.engine_period)

    def adjust(self) -> None:
        """With one feed-forward size, and a sparsity for each layer."""
        super().adjust()
        config, n_layer = self.config, self.n_layers()
        if isinstance(config["intermediate_size"], list):
            sizes = config.entries("intermediate_size", n_layer) or [None]
            if any(size != sizes[0] for size in sizes):
                raise UnsupportedModelError(
                    "config.json: intermediate_size differs between layers, but the engine's "
                    "Gemma 3n has one"
                )
            config["intermediate_size"] = sizes[0]
        self.check_shared_layers()
        own = n_layer - config["num_kv_shared_layers"]
        if own != min(n_layer, _ENGINE_LAYERS_WITH_KV):
            raise UnsupportedModelError(
                f"config.json: {own} of {n_layer} layers have keys and values of their own "
                "(num_kv_shared_layers), but the engine computes Gemma 3n with "
                f"{_ENGINE_LAYERS_WITH_KV}"
            )
        if self._sparsity != [0.95 * (layer < _ENGINE_SPARSE_LAYERS) for layer in range(n_layer)]:
            raise UnsupportedModelError(
                "config.json: activation_sparsity_pattern is not 0.95 for the first "
                f"{_ENGINE_SPARSE_LAYERS} layers and 0 for the others, as the engine computes it"
            )

    @functools.cached_property
    def _sparsity(self) -> list[Any]:
        n_layer = self.n_layers()
        given = self.config.entries("activation_sparsity_pattern", n_layer)
        if given is not None:
            return given
        # As transformers fills it in.
        n_sparse = _ENGINE_SPARSE_LAYERS if n_layer > _ENGINE_SPARSE_LAYERS else 0
        return [0.95] * n_sparse + [0.0] * (n_layer - n_sparse)

    def layer_rules(self, layer: int) -> Mapping[str, TensorRule]:
        return {
            **self.shared_attention(layer),
            **self.rules("mlp", "norms_around", "gemma3n", "gemma_per_layer"),
        }

    def outer_rules(self) -> dict[str, TensorRule]:
        dims = self.dims
        rows = self.config.whole("vocab_size_per_layer_input", most=dims.n_vocab)
        width = dims.n_layer * self.config.whole("hidden_size_per_layer_input")
        table = zero_rows("per_layer_token_embd.weight", rows, width, n_rows=dims.n_vocab)
        return {**super().outer_rules(), "model.embed_tokens_per_layer.weight": table}

    def outer_stacks(self) -> list[tuple[ExpertStack, int]]:
        names = {"projections": "proj", "unembed_projections": "unembd_proj"}
        shape = (self.dims.n_embd, self.dims.n_embd)
        return [
            (ExpertStack(f"model.altup_{n}.{{}}.weight", f"altup_{t}.weight", shape), _N_ALTUP - 1)
            for n, t in names.items()
        ]

    def make_tensors(self) -> list[TargetTensor]:
        """With zeros for keys and values of shared layers where a checkpoint, saved by a newer
        transformers, has none: the engine loads them but does not compute with them.
        """
        made, dims = super().make_tensors(), self.dims
        names = {tensor.name for tensor in made}
        kind = next(t.source_type for t in made if t.name == "blk.0.attn_k.weight")
        shapes = {
            "attn_k": (dims.kv_rows, dims.n_embd),
            "attn_k_norm": (dims.head_dim,),
            "attn_v": (dims.kv_rows, dims.n_embd),
        }
        absent = (
            (f"blk.{layer}.{part}.weight", shape)
            for layer in filter(self.is_shared, range(dims.n_layer))
            for part, shape in shapes.items()
        )
        return made + [_zeros(name, shape, kind) for name, shape in absent if name not in names]

    def extra_metadata(self) -> dict[str, Any]:
        config = self.config
        return {
            "final_logit_softcapping": config.number("final_logit_softcapping"),
            "attention.sliding_window": config.whole("sliding_window"),
            "altup.active_idx": config["altup_active_idx"],
            "altup.num_inputs": _N_ALTUP,
            "embedding_length_per_layer_input": config["hidden_size_per_layer_input"],
            "attention.shared_kv_layers": config["num_kv_shared_layers"],
            "activation_sparsity_scale": [_DEVIATIONS[part] for part in self._sparsity],
            "attention.sliding_window_pattern": list(self.sliding),
        }

    def per_layer(self) -> dict[str, Any]:
        return {"feed_forward_length": [self.dims.n_ff] * self.dims.n_layer}


def zero_rows(target: str, *shape: int, n_rows: int) -> TensorRule:
    """The tensor with rows of zeros after its own, up to `n_rows`."""

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        rows = matrix(source)

        def read(start: int, stop: int) -> np.ndarray:
            block = rows[start:stop]
            missing = stop - start - len(block)
            padding = np.zeros((missing, rows.shape[1]), dtype=rows.dtype)
            return np.concatenate([block, padding]) if missing else block

        return [target_tensor(name, (n_rows, shape[1]), source.dtype, read, source.name)]

    return TensorRule(target, shape, build)


def _zeros(name: str, shape: tuple[int, ...], source_type: str) -> TargetTensor:
    dtype = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[source_type]

    def read(start: int, stop: int) -> np.ndarray:
        return np.zeros((stop - start, shape[-1]), dtype=dtype)

    return target_tensor(name, shape, source_type, read, "zeros")
