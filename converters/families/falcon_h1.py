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

from boardfit.converters.families.layout import (
    SourceTensor,
    TensorRule,
    copy,
    matrix,
    target_tensor,
    to_f32,
)
from boardfit.converters.families.mamba2 import Mamba2, MambaFamily
from boardfit.converters.families.rope import rope_metadata, rope_parameters
from boardfit.converters.families.settings import Config, quote
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import UnsupportedModelError

# A factor for all rows, or one for each.
Factor = float | np.ndarray


class FalconH1(MambaFamily):
    """`FalconH1ForCausalLM`."""

    arch = "falcon-h1"
    parts = ("attention", "falcon_h1")

    def adjust(self) -> None:
        super().adjust()
        self._has_norm = self.config.flag("mamba_rms_norm")
        if self._has_norm and self.config["mamba_norm_before_gate"] is not False:
            given = quote(self.config["mamba_norm_before_gate"])
            raise UnsupportedModelError(
                f"config.json: mamba_norm_before_gate is {given}; the engine computes as if it "
                "were False"
            )
        self.mixer.check_head_size(self.config, "mamba_d_ssm")

    def find_mixer(self) -> Mamba2:
        inner = self.config.whole_or("mamba_d_ssm", None)
        if inner is None:
            inner = self.config.whole("mamba_expand") * self.config.whole("hidden_size")
        return Mamba2.from_config(self.config, inner)

    def layer_rules(self, layer: int) -> Mapping[str, TensorRule]:
        """Multipliers are folded into matrices, in upstream's order of multiplication."""
        mixer = self.mixer
        rules = {
            **self.mixer_rules("mamba2", *(["mamba2_norm"] if self._has_norm else [])),
            **super().layer_rules(layer),
        }
        gate, down = self._multipliers("mlp_multipliers", 2)
        inward = self._multiplier("attention_in_multiplier")
        parts = (mixer.inner, mixer.inner, *[mixer.n_group * mixer.d_state] * 2, mixer.n_head)
        by_row = np.repeat(np.array(self._multipliers("ssm_multipliers", 5)), parts)
        factors: dict[str, tuple[Factor, ...]] = {
            "self_attn.q_proj": (inward,),
            "self_attn.k_proj": (self._multiplier("key_multiplier"), inward),
            "self_attn.v_proj": (inward,),
            "self_attn.o_proj": (self._multiplier("attention_out_multiplier"),),
            "mamba.in_proj": (self._multiplier("ssm_in_multiplier"), by_row),
            "mamba.out_proj": (self._multiplier("ssm_out_multiplier"),),
            "feed_forward.gate_proj": (gate,),
            "feed_forward.down_proj": (down,),
        }
        scaled_rules = {
            f"{name}.weight": scaled(rule.target, *rule.shape, by=by)
            for name, by in factors.items()
            for rule in [rules[f"{name}.weight"]]
        }
        return {**rules, **scaled_rules}

    def outer_rules(self) -> dict[str, TensorRule]:
        shape = (self.dims.n_vocab, self.dims.n_embd)
        factors = [self._multiplier(f"{part}_multiplier") for part in ("embedding", "lm_head")]
        embedding, head = (
            scaled(name, *shape, by=(factor,))
            for name, factor in zip(("token_embd.weight", "output.weight"), factors, strict=True)
        )
        rules = {
            "model.embed_tokens.weight": embedding,
            "model.final_layernorm.weight": copy("output_norm.weight", self.dims.n_embd),
        }
        if not self.is_tied:
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

    def values(self) -> dict[str, Any]:
        """All entries, in upstream's order, which is that of its `Mamba2Model`."""
        order = ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
        dims = self.dims
        return {
            "context_length": dims.n_ctx,
            "embedding_length": dims.n_embd,
            "feed_forward_length": dims.n_ff,
            "attention.head_count": dims.n_head,
            "block_count": dims.n_layer,
            **self.mixer.values(order),
            "attention.layer_norm_rms_epsilon": self.config.number("rms_norm_eps"),
            "vocab_size": dims.n_vocab,
            "attention.head_count_kv": dims.n_head_kv,
            **self.head_values(),
            **rope_metadata(rope_parameters(self.config)),
        }

    def _multiplier(self, key: str) -> float:
        return self.config.number_or(key, 1.0)

    def _multipliers(self, key: str, length: int) -> list[float]:
        values = self.config.entries(key, length) or [1.0] * length
        return [Config({key: value}).number(key) for value in values]


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
