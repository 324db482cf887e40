"""Gemma 3n, the language model: text-only checkpoints and the text part of multimodal ones.

Upstream: conversion/gemma.py, `Gemma3NModel`; engine: src/models/gemma3n.cpp. Quirks: four copies
of the hidden state that each layer predicts and corrects (AltUp), a low-rank detour beside
attention (Laurel), sparse activations in the first ten layers, an embedding of each layer's own
whose table lacks the rows of images and sounds (zeros here), and last layers without keys and
values of their own. The engine has most sizes of the two published models built in and reads
neither the entries for them nor the cap on logits, so that other models are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import MOST_LAYERS, Dimensions, copies
from boardfit.converters.families.gemma import Gemma3, sliding_layers
from boardfit.converters.families.gemma4 import (
    check_shared_layers,
    is_shared,
    refuse_unknown_parts,
    shared_attention,
)
from boardfit.converters.families.layout import (
    Checkpoint,
    ExpertStack,
    SourceTensor,
    TensorRule,
    copy,
    matrix,
    target_tensor,
)
from boardfit.converters.families.settings import Config, quote
from boardfit.converters.spec import TargetTensor
from boardfit.device_profiles.shape import LayerShape
from boardfit.edge.errors import UnsupportedModelError

# Sparsity → how many standard deviations above the mean a value must lie: the inverse of the normal
# distribution in float32, as torch computes it.
_DEVIATIONS = {0.95: 1.6448535919189453, 0.0: -np.inf}
_N_ALTUP = 4
# Built into the engine (src/llama-hparams.h, src/models/models.h, src/models/gemma3n.cpp).
_ENGINE_SIZES = {
    "altup_num_inputs": _N_ALTUP,
    "altup_active_idx": 0,
    "laurel_rank": 64,
    "hidden_size_per_layer_input": 256,
    "final_logit_softcapping": 30.0,
}
_ENGINE_LAYERS_WITH_KV = 20
_ENGINE_SPARSE_LAYERS = 10


class Gemma3n(Gemma3):
    """`Gemma3nForCausalLM`, and the language model of `Gemma3nForConditionalGeneration`."""

    arch = "gemma3n"
    engine_period = 5

    def sliding(self, config: Config) -> Sequence[bool]:
        return sliding_layers(config, period=self.engine_period)

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """With one feed-forward size, and a sparsity for each layer."""
        config = super().config(checkpoint)
        refuse_unknown_parts(config)
        for key, expected in _ENGINE_SIZES.items():
            if config[key] != expected:
                raise UnsupportedModelError(
                    f"config.json: {key} is {quote(config[key])}, but the engine computes Gemma 3n "
                    f"with {expected}"
                )
        n_layer = settings.require_int(config, "num_hidden_layers", most=MOST_LAYERS)
        if isinstance(config["intermediate_size"], list):
            sizes = settings.optional_list(config, "intermediate_size", n_layer) or [None]
            if any(size != sizes[0] for size in sizes):
                raise UnsupportedModelError(
                    "config.json: intermediate_size differs between layers, but the engine's "
                    "Gemma 3n has one"
                )
            config["intermediate_size"] = sizes[0]
        self._check_layers(config, n_layer)
        return config

    def _check_layers(self, config: Config, n_layer: int) -> None:
        check_shared_layers(config, self.sliding(config))
        own = n_layer - config["num_kv_shared_layers"]
        if own != min(n_layer, _ENGINE_LAYERS_WITH_KV):
            raise UnsupportedModelError(
                f"config.json: {own} of {n_layer} layers have keys and values of their own "
                "(num_kv_shared_layers), but the engine computes Gemma 3n with "
                f"{_ENGINE_LAYERS_WITH_KV}"
            )
        if _sparsity(config, n_layer) != [
            0.95 if layer < _ENGINE_SPARSE_LAYERS else 0.0 for layer in range(n_layer)
        ]:
            raise UnsupportedModelError(
                "config.json: activation_sparsity_pattern is not 0.95 for the first "
                f"{_ENGINE_SPARSE_LAYERS} layers and 0 for the others, as the engine computes it"
            )

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        sizes = {"rank": config["laurel_rank"], "n_altup": _N_ALTUP}
        width = config["hidden_size_per_layer_input"]
        return {
            **shared_attention(dims, is_shared=is_shared(config, dims, layer)),
            **copies(dims, "mlp", "norms_around", "gemma3n", **sizes),
            **copies(dims, "gemma_per_layer", width=width),
        }

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        width = config["hidden_size_per_layer_input"]
        rows = settings.require_int(config, "vocab_size_per_layer_input", most=dims.n_vocab)
        table = zero_rows(
            "per_layer_token_embd.weight", rows, dims.n_layer * width, n_rows=dims.n_vocab
        )
        return {
            **super().outer_rules(config, dims),
            "model.norm.weight": copy("output_norm.weight", dims.n_embd),
            "model.embed_tokens_per_layer.weight": table,
            **copies(dims, "gemma_per_layer_outer", width=width),
        }

    def outer_stacks(self, config: Config, dims: Dimensions) -> list[tuple[ExpertStack, int]]:
        shape = (dims.n_embd, dims.n_embd)
        inward = ExpertStack("model.altup_projections.{}.weight", "altup_proj.weight", shape)
        outward = ExpertStack(
            "model.altup_unembed_projections.{}.weight", "altup_unembd_proj.weight", shape
        )
        return [(inward, _N_ALTUP - 1), (outward, _N_ALTUP - 1)]

    def tensors(self, checkpoint: Checkpoint) -> list[TargetTensor]:
        """With zeros for keys and values of shared layers where a checkpoint, saved by a newer
        transformers, has none: the engine loads them but does not compute with them.
        """
        made = super().tensors(checkpoint)
        config = self.config(checkpoint)
        dims, names = self.dimensions(config), {tensor.name for tensor in made}
        kind = next(t.source_type for t in made if t.name == "blk.0.attn_k.weight")
        for layer in range(dims.n_layer):
            if not is_shared(config, dims, layer):
                continue
            for part, shape in (
                ("attn_k", (dims.kv_rows, dims.n_embd)),
                ("attn_k_norm", (dims.head_dim,)),
                ("attn_v", (dims.kv_rows, dims.n_embd)),
            ):
                if (name := f"blk.{layer}.{part}.weight") not in names:
                    made.append(_zeros(name, shape, kind))
        return made

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        deviations = [_DEVIATIONS[part] for part in _sparsity(config, dims.n_layer)]
        window = settings.require_int(config, "sliding_window")
        return {
            "final_logit_softcapping": _ENGINE_SIZES["final_logit_softcapping"],
            "attention.sliding_window": window,
            "altup.active_idx": _ENGINE_SIZES["altup_active_idx"],
            "altup.num_inputs": _N_ALTUP,
            "embedding_length_per_layer_input": _ENGINE_SIZES["hidden_size_per_layer_input"],
            "attention.shared_kv_layers": config["num_kv_shared_layers"],
            "activation_sparsity_scale": deviations,
            "attention.sliding_window_pattern": list(self.sliding(config)),
        }

    def per_layer(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {"feed_forward_length": [dims.n_ff] * dims.n_layer}

    def layer_shape(self, config: Config, dims: Dimensions, layer: int) -> LayerShape:
        shape = super().layer_shape(config, dims, layer)
        return replace(shape, shares_kv=is_shared(config, dims, layer))


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


def _sparsity(config: Config, n_layer: int) -> list[Any]:
    given = settings.optional_list(config, "activation_sparsity_pattern", n_layer)
    if given is not None:
        return given
    # As transformers fills it in.
    n_sparse = _ENGINE_SPARSE_LAYERS if n_layer > _ENGINE_SPARSE_LAYERS else 0
    return [0.95] * n_sparse + [0.0] * (n_layer - n_sparse)
