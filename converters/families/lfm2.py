"""LFM2, dense and mixture of experts. Upstream: conversion/lfm2.py, `LFM2Model` and `LFM2MoeModel`;
engine: src/models/lfm2.cpp, lfm2moe.cpp.

Quirks: most layers are short convolutions, marked by a key-value head count of 0 in a per-layer
list; a convolution keeps the last `conv_L_cache - 1` hidden vectors instead of a KV cache; its
weight loses the middle axis and stays float32. The feed-forward size in `config.json` may be one to
be adjusted by a rule. The final norm goes by the name of an embedding norm.
"""

import functools
from collections.abc import Sequence
from typing import Any

from gguf import ExpertGatingFuncType

from boardfit.converters.families.decoder import DecoderFamily


class Lfm2(DecoderFamily):
    """`Lfm2ForCausalLM`."""

    arch = "lfm2"
    outer_parts = ("lfm2_outer",)
    mark = ("conv", "conv.conv.weight")

    def adjust(self) -> None:
        """With the older spellings (`theta`, `tie_embedding`) under the newer names."""
        config = self.config
        for old, new in (("theta", "rope_theta"), ("tie_embedding", "tie_word_embeddings")):
            if old in config:
                config[new] = config[old]
        config["rms_norm_eps"] = config["norm_eps"]
        config.whole("conv_L_cache", least=2)
        config["intermediate_size"] = self._feed_forward()

    @functools.cached_property
    def kinds(self) -> list[str]:
        """`layer_types`, or the older list of indices `full_attn_idxs`; all layers attend where
        neither is given.
        """
        n_layer = self.n_layers()
        kinds = self.config.layer_kinds(("conv", "full_attention"), length=n_layer)
        if kinds is not None:
            return kinds
        attends = self.config.entries("full_attn_idxs")
        return [
            "full_attention" if attends is None or i in attends else "conv" for i in range(n_layer)
        ]

    def layer_parts(self, layer: int) -> Sequence[str]:
        attends = self.kinds[layer] == "full_attention"
        mixer = ("lfm2_attention", "head_layernorms") if attends else ("lfm2_convolution",)
        return (*mixer, "lfm2_mlp", "lfm2_norms")

    def per_layer(self) -> dict[str, Any]:
        n_head_kv = self.dims.n_head_kv
        counts = [n_head_kv * (kind == "full_attention") for kind in self.kinds]
        return {"attention.head_count_kv": counts}

    def extra_metadata(self) -> dict[str, Any]:
        cached = self.config.whole("conv_L_cache")
        return {"vocab_size": self.dims.n_vocab, "shortconv.l_cache": cached}

    def _feed_forward(self) -> int:
        """Two thirds of the given size, times a multiplier, rounded up to a multiple, when
        `block_auto_adjust_ff_dim` is set (conversion/lfm2.py, `_add_feed_forward_length`).
        """
        config = self.config
        n_ff = config.whole_or("block_ff_dim", None) or config.whole("intermediate_size")
        if not config.flag("block_auto_adjust_ff_dim", default=True):
            return n_ff
        n_ff = int(config.number_or("block_ffn_dim_multiplier", 1.0) * int(2 * n_ff / 3))
        multiple = config.whole("block_multiple_of")
        return multiple * -(-n_ff // multiple)


class Lfm2Vl(Lfm2):
    """`Lfm2VlForConditionalGeneration`: its language model."""

    is_multimodal = True


class Lfm2Moe(Lfm2):
    """`Lfm2MoeForCausalLM`: dense layers first, then layers with experts and a biased router."""

    arch = "lfm2moe"

    @property
    def n_dense(self) -> int:
        return self.config.whole("num_dense_layers", least=0)

    def layer_parts(self, layer: int) -> Sequence[str]:
        dense = super().layer_parts(layer)
        if layer < self.n_dense:
            return dense
        return ["lfm2_experts" if part == "lfm2_mlp" else part for part in dense]

    def extra_metadata(self) -> dict[str, Any]:
        return {
            "expert_feed_forward_length": self.config.whole("moe_intermediate_size"),
            "leading_dense_block_count": self.n_dense,
            "expert_gating_func": int(ExpertGatingFuncType.SIGMOID),
            **super().extra_metadata(),
        }
