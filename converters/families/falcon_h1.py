"""Falcon-H1: attention and a Mamba2 mixer side by side in every layer. Upstream:
conversion/falcon_h1.py, `FalconH1Model`; engine: src/models/falcon-h1.cpp.

Quirks: many multipliers (embedding, head, attention, key, Mamba, feed-forward) are folded into the
weights. The norm in the mixer is there only with `mamba_rms_norm`. Where head and embedding are
tied and their multipliers differ, the head becomes a tensor of its own; upstream leaves it scaled
as the embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, copies, head_values
from boardfit.converters.families.layout import (
    Checkpoint,
    SourceTensor,
    TensorRule,
    copy,
    matrix,
    target_tensor,
    to_f32,
)
from boardfit.converters.families.mamba2 import Mamba2
from boardfit.converters.families.rope import rope_metadata, rope_parameters
from boardfit.converters.families.settings import Config
from boardfit.converters.spec import TargetTensor
from boardfit.device_profiles.shape import LayerShape

# A factor for all rows, or one for each.
Factor = float | np.ndarray


class FalconH1(DecoderFamily):
    """`FalconH1ForCausalLM`."""

    arch = "falcon-h1"

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        config = super().config(checkpoint)
        mixer = self.mixer(config)
        mixer.check(config)
        if settings.optional_bool(config, "mamba_rms_norm", False):
            settings.require_value(config, "mamba_norm_before_gate", False)
        for key in ("attention_bias", "mlp_bias"):
            settings.require_value(config, key, False)
        mixer.check_head_size(config, "mamba_d_ssm")
        return config

    def mixer(self, config: Config) -> Mamba2:
        n_embd = settings.require_int(config, "hidden_size")
        inner = settings.optional_int(config, "mamba_d_ssm")
        if inner is None:
            inner = settings.require_int(config, "mamba_expand") * n_embd
        return Mamba2.from_config(config, inner)

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        has_norm = settings.optional_bool(config, "mamba_rms_norm", False)
        return {
            **self.mixer(config).rules("mamba.", has_norm=has_norm),
            **self._scaled_rules(config, dims),
            **copies(dims, "falcon_h1"),
        }

    def _scaled_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        """Matrices that multipliers are folded into, in upstream's order of multiplication."""
        n_embd, mixer = dims.n_embd, self.mixer(config)
        gate, down = _multipliers(config, "mlp_multipliers", 2)
        inward = _multiplier(config, "attention_in_multiplier")
        key = (_multiplier(config, "key_multiplier"), inward)
        outward = _multiplier(config, "attention_out_multiplier")
        parts = (mixer.inner, mixer.inner, *[mixer.n_group * mixer.d_state] * 2, mixer.n_head)
        by_row = np.repeat(np.array(_multipliers(config, "ssm_multipliers", 5)), parts)
        mamba = (_multiplier(config, "ssm_in_multiplier"), by_row)
        mamba_out = (_multiplier(config, "ssm_out_multiplier"),)
        q, kv, n_ff = dims.q_rows, dims.kv_rows, dims.n_ff
        return {
            "self_attn.q_proj.weight": scaled("attn_q.weight", q, n_embd, by=(inward,)),
            "self_attn.k_proj.weight": scaled("attn_k.weight", kv, n_embd, by=key),
            "self_attn.v_proj.weight": scaled("attn_v.weight", kv, n_embd, by=(inward,)),
            "self_attn.o_proj.weight": scaled("attn_output.weight", n_embd, q, by=(outward,)),
            "mamba.in_proj.weight": scaled("ssm_in.weight", mixer.in_rows, n_embd, by=mamba),
            "mamba.out_proj.weight": scaled("ssm_out.weight", n_embd, mixer.inner, by=mamba_out),
            "feed_forward.gate_proj.weight": scaled("ffn_gate.weight", n_ff, n_embd, by=(gate,)),
            "feed_forward.down_proj.weight": scaled("ffn_down.weight", n_embd, n_ff, by=(down,)),
        }

    def outer_rules(self, config: Config, dims: Dimensions) -> dict[str, TensorRule]:
        shape = (dims.n_vocab, dims.n_embd)
        factors = [_multiplier(config, f"{part}_multiplier") for part in ("embedding", "lm_head")]
        embedding, head = (
            scaled(name, *shape, by=(factor,))
            for name, factor in zip(("token_embd.weight", "output.weight"), factors, strict=True)
        )
        rules = {
            "model.embed_tokens.weight": embedding,
            "model.final_layernorm.weight": copy("output_norm.weight", dims.n_embd),
        }
        if not self.is_tied(config):
            return {**rules, "lm_head.weight": head}
        if factors[0] != factors[1]:
            rules["model.embed_tokens.weight"] = TensorRule(
                embedding.target,
                shape,
                lambda name, source: [
                    *embedding.build(name, source),
                    *head.build(head.target, source),
                ],
            )
        return rules

    def layer_shape(self, config: Config, dims: Dimensions, layer: int) -> LayerShape:
        state = self.mixer(config).state_values
        return LayerShape(dims.n_head_kv, dims.head_dim, dims.head_dim, state_values=state)

    def values(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        """All entries, in upstream's order, which is that of its `Mamba2Model`."""
        order = ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
        epsilon = settings.require_float(config, "rms_norm_eps")
        return {
            "context_length": dims.n_ctx,
            "embedding_length": dims.n_embd,
            "feed_forward_length": dims.n_ff,
            "attention.head_count": dims.n_head,
            "block_count": dims.n_layer,
            **self.mixer(config).values(order),
            "attention.layer_norm_rms_epsilon": epsilon,
            "vocab_size": dims.n_vocab,
            "attention.head_count_kv": dims.n_head_kv,
            **head_values(dims),
            **rope_metadata(rope_parameters(config)),
        }


def scaled(target: str, *shape: int, by: Sequence[Factor]) -> TensorRule:
    """The values times each factor in turn, in float32 as upstream does."""
    factors = [factor for factor in by if not np.all(factor == np.float32(1))]
    if not factors:
        return copy(target, *shape)

    def build(name: str, source: SourceTensor) -> list[TargetTensor]:
        rows = matrix(source)

        def read(start: int, stop: int) -> np.ndarray:
            values = to_f32(rows[start:stop], source.dtype)
            for factor in factors:
                part = factor[start:stop, None] if isinstance(factor, np.ndarray) else factor
                values = values * np.float32(part)
            return values

        return [target_tensor(name, shape, "F32", read, source.name)]

    return TensorRule(target, shape, build)


def _multiplier(config: Config, key: str) -> float:
    return 1.0 if config.get(key) is None else settings.require_float(config, key)


def _multipliers(config: Config, key: str, length: int) -> list[float]:
    values = settings.optional_list(config, key, length) or [1.0] * length
    return [settings.require_float({key: value}, key) for value in values]
