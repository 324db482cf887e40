"""LFM2, dense and mixture of experts. Upstream: conversion/lfm2.py, `LFM2Model` and `LFM2MoeModel`;
engine: src/models/lfm2.cpp, lfm2moe.cpp.

Quirks: most layers are short convolutions, marked by a key-value head count of 0 in a per-layer
list; a convolution keeps the last `conv_L_cache - 1` hidden vectors instead of a KV cache; its
weight loses the middle axis and stays float32. The feed-forward size in `config.json` may be one to
be adjusted by a rule. The final norm goes by the name of an embedding norm.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gguf import ExpertGatingFuncType

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, copies
from boardfit.converters.families.layout import Checkpoint, ExpertStack, TensorRule, copy, reshape
from boardfit.converters.families.settings import Config


class Lfm2(DecoderFamily):
    """`Lfm2ForCausalLM`."""

    arch = "lfm2"
    mark = ("conv", "conv.conv.weight")

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """With the older spellings (`theta`, `tie_embedding`) under the newer names."""
        config = super().config(checkpoint)
        for old, new in (("theta", "rope_theta"), ("tie_embedding", "tie_word_embeddings")):
            if old in config:
                config[new] = config[old]
        config["rms_norm_eps"] = config["norm_eps"]
        settings.require_value(config, "conv_bias", False)
        return config

    def kinds(self, config: Config) -> list[str]:
        """`layer_types`, or the older list of indices `full_attn_idxs`; all layers attend where
        neither is given.
        """
        n_layer = settings.require_int(config, "num_hidden_layers")
        kinds = settings.layer_kinds(config, ("conv", "full_attention"), length=n_layer)
        if kinds is not None:
            return kinds
        attends = settings.optional_list(config, "full_attn_idxs")
        return [
            "full_attention" if attends is None or i in attends else "conv" for i in range(n_layer)
        ]

    def dimensions(self, config: Config) -> Dimensions:
        sizes = {**config, "intermediate_size": self._feed_forward(config)}
        return super().dimensions(sizes)

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        attends = self.kinds(config)[layer] == "full_attention"
        here = "lfm2_attention", "head_layernorms"
        return {
            **(copies(dims, *here) if attends else _convolution_rules(config, dims)),
            **self._feed_forward_rules(config, dims, layer),
            **copies(dims, "lfm2_norms"),
        }

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        rules = super().outer_rules(config, dims)
        del rules["model.norm.weight"]
        norm = copy("token_embd_norm.weight", dims.n_embd)
        return {**rules, "model.embedding_norm.weight": norm}

    def state_values(self, config: Config, dims: Dimensions, layer: int) -> int | None:
        if self.kinds(config)[layer] == "full_attention":
            return None
        return dims.n_embd * (_kernel(config) - 1)

    def per_layer(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        attends = [kind == "full_attention" for kind in self.kinds(config)]
        return {"attention.head_count_kv": [dims.n_head_kv if here else 0 for here in attends]}

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {"vocab_size": dims.n_vocab, "shortconv.l_cache": _kernel(config)}

    def _feed_forward(self, config: Config) -> int:
        """Two thirds of the given size, times a multiplier, rounded up to a multiple, when
        `block_auto_adjust_ff_dim` is set (conversion/lfm2.py, `_add_feed_forward_length`).
        """
        given = "intermediate_size" if config.get("block_ff_dim") is None else "block_ff_dim"
        n_ff = settings.require_int(config, given)
        if not settings.optional_bool(config, "block_auto_adjust_ff_dim", True):
            return n_ff
        n_ff = int(2 * n_ff / 3)
        multiplier = settings.optional_float(config, "block_ffn_dim_multiplier")
        if multiplier is not None:
            n_ff = int(multiplier * n_ff)
        multiple = settings.require_int(config, "block_multiple_of")
        return multiple * -(-n_ff // multiple)

    def _feed_forward_rules(
        self, config: Config, dims: Dimensions, layer: int
    ) -> dict[str, TensorRule]:
        return copies(dims, "lfm2_mlp")


class Lfm2Vl(Lfm2):
    """`Lfm2VlForConditionalGeneration`: its language model."""

    is_multimodal = True


class Lfm2Moe(Lfm2):
    """`Lfm2MoeForCausalLM`: dense layers first, then layers with experts and a biased router."""

    arch = "lfm2moe"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        settings.require_value(config, "norm_topk_prob", True)
        settings.require_value(config, "use_expert_bias", True)
        settings.require_value(config, "routed_scaling_factor", 1.0)
        return config

    def expert_stacks(self, config: Config, dims: Dimensions, layer: int) -> Sequence[ExpertStack]:
        if layer < self._n_dense(config):
            return ()
        n_ff = settings.require_int(config, "moe_intermediate_size")
        inward, outward = (n_ff, dims.n_embd), (dims.n_embd, n_ff)
        return (
            ExpertStack("feed_forward.experts.{}.w1.weight", "ffn_gate_exps.weight", inward),
            ExpertStack("feed_forward.experts.{}.w2.weight", "ffn_down_exps.weight", outward),
            ExpertStack("feed_forward.experts.{}.w3.weight", "ffn_up_exps.weight", inward),
        )

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return {
            "expert_feed_forward_length": settings.require_int(config, "moe_intermediate_size"),
            "leading_dense_block_count": self._n_dense(config),
            "expert_gating_func": int(ExpertGatingFuncType.SIGMOID),
            **super().extra_metadata(config, dims),
        }

    def _feed_forward_rules(
        self, config: Config, dims: Dimensions, layer: int
    ) -> dict[str, TensorRule]:
        if layer < self._n_dense(config):
            return super()._feed_forward_rules(config, dims, layer)
        return copies(dims, "lfm2_router", n_expert=self.n_expert(config))

    def _n_dense(self, config: Config) -> int:
        return settings.require_int(config, "num_dense_layers", least=0)


def _kernel(config: Config) -> int:
    """Tokens that a convolution looks at, its own included."""
    return settings.require_int(config, "conv_L_cache", least=2)


def _convolution_rules(config: Config, dims: Dimensions) -> dict[str, TensorRule]:
    n_embd, kernel = dims.n_embd, _kernel(config)
    short = reshape("shortconv.conv.weight", n_embd, 1, kernel, to=(n_embd, kernel))
    return {"conv.conv.weight": short, **copies(dims, "lfm2_convolution")}
