"""Gemma 2 and 3, the language models. Upstream: conversion/gemma.py, `Gemma2Model`, `Gemma3Model`;
engine: src/models/gemma2.cpp, gemma3.cpp.

Quirks: every norm weight is stored minus one; some layers look back over a window only; the head is
the embedding. The factor sqrt(hidden size) on embeddings is applied by the engine and not stored.
What the engine has built in (the scale of attention scores, the layer pattern) is compared with
`config.json`: a model that would be computed wrongly is refused, or described by an entry that
upstream's converter leaves out.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from boardfit.converters.families.decoder import DecoderFamily
from boardfit.converters.families.rope import global_rope, rope_parameters
from boardfit.converters.families.settings import quote
from boardfit.edge.errors import UnsupportedModelError


class WindowedFamily(DecoderFamily):
    """Some layers look back over a window only: `layer_types`, else all but every
    `engine_period`-th layer, which is what the engine assumes.
    """

    engine_period: ClassVar[int]

    @property
    def sliding(self) -> Sequence[bool]:
        return self.find_sliding(self.engine_period)

    def find_sliding(self, period: int) -> list[bool]:
        n_layer = self.config.whole("num_hidden_layers")
        known = ("sliding_attention", "full_attention")
        kinds = self.config.layer_kinds(known, length=n_layer)
        if kinds is None:
            return [(index + 1) % period != 0 for index in range(n_layer)]
        return [kind == known[0] for kind in kinds]

    def unusual_pattern(self) -> dict[str, Any]:
        """The layer pattern as an entry when it is not the one that the engine assumes, which
        upstream never writes for these families (src/llama-model.cpp, `load_swa_pattern`).
        """
        sliding = list(self.sliding)
        if sliding == [(index + 1) % self.engine_period != 0 for index in range(len(sliding))]:
            return {}
        return {"attention.sliding_window_pattern": sliding}


class Gemma2(WindowedFamily):
    """`Gemma2ForCausalLM`: scores and logits are capped; a stored `lm_head` is dropped."""

    arch = "gemma2"
    parts = ("attention", "mlp", "norms_around_plus_one")
    outer_parts = ("outer_plus_one", "gemma2_head")
    # Every second layer sees the whole context, unless an entry overrides it.
    engine_period = 2

    def values(self) -> dict[str, Any]:
        """In the order of upstream's own `set_gguf_parameters`, which is not the usual one."""
        check_attention_scale(self, 46)
        caps = ("attn_logit_softcapping", "final_logit_softcapping")
        for key in caps:
            if self.config.get(key) is None:
                raise UnsupportedModelError(
                    f"config.json: {key} is null; the engine always caps Gemma 2's values"
                )
        dims = self.dims
        return {
            "context_length": dims.n_ctx,
            "embedding_length": dims.n_embd,
            "block_count": dims.n_layer,
            "feed_forward_length": dims.n_ff,
            "attention.head_count": dims.n_head,
            "attention.head_count_kv": dims.n_head_kv,
            **self.norm_values(),
            **self.head_values(),
            **{key: self.config.number(key) for key in caps},
            **self.window_values(),
            **self._unusual_rope(),
            **self.unusual_pattern(),
        }

    def _unusual_rope(self) -> dict[str, Any]:
        """A rope base other than the engine's own, 10000, as an entry, which upstream does not
        write for Gemma 2. A fine-tune with another base would be computed wrongly without it.
        """
        rope = global_rope(rope_parameters(self.config))
        kind = rope.get("rope_type")
        if kind not in (None, "default"):
            raise UnsupportedModelError(
                f"config.json: Gemma 2 with rope scaling {quote(kind)} is unknown"
            )
        base = rope.number_or("rope_theta", 10000.0)
        return {} if base == 10000.0 else {"rope.freq_base": base}


class Gemma3(WindowedFamily):
    """`Gemma3ForCausalLM`, and the language model of `Gemma3ForConditionalGeneration`.

    Five layers of six look back over a window and rotate with a base of their own. Rope scaling
    concerns full-attention layers only. Published multimodal configurations name few sizes and
    leave the rest to the defaults of `Gemma3TextConfig`.
    """

    arch = "gemma3"
    parts = ("attention", "mlp", "head_norms_plus_one", "norms_around_plus_one")
    outer_parts: tuple[str, ...] = ("outer_plus_one",)
    is_multimodal = True
    engine_period = 6

    @property
    def sliding(self) -> Sequence[bool]:
        """Older configurations give the pattern as a number instead of `layer_types`. A period of 1
        means full attention everywhere: no window is written then.
        """
        period = self.config.whole_or("sliding_window_pattern", self.engine_period)
        return () if period == 1 else self.find_sliding(period)

    def adjust(self) -> None:
        if self.config.get("use_bidirectional_attention") in (True, "all"):
            raise UnsupportedModelError(
                "config.json: use_bidirectional_attention is set for all tokens: an embedding "
                "model, not a chat model"
            )

    def extra_metadata(self) -> dict[str, Any]:
        check_attention_scale(self, 62)
        if self.config.get("attn_logit_softcapping") is not None:
            raise UnsupportedModelError(
                "config.json: attn_logit_softcapping is set; Gemma 3 has no cap on scores, and the "
                "engine applies none"
            )
        cap = self.config.number_or("final_logit_softcapping", None)
        values: dict[str, Any] = {"final_logit_softcapping": cap} if cap else {}
        if self.sliding:
            values |= self.window_values() | self.unusual_pattern()
        return values


def check_attention_scale(family: DecoderFamily, n_layer_27b: int) -> None:
    """The engine scales scores by 1 / sqrt(head_dim), in the 27B model (recognized by its layer
    count) by 1 / sqrt(hidden size / heads). Raises UnsupportedModelError when
    `query_pre_attn_scalar` asks for another scale.
    """
    wanted, dims = family.config.number("query_pre_attn_scalar"), family.dims
    engine = dims.n_embd // dims.n_head if dims.n_layer == n_layer_27b else dims.head_dim
    if wanted != engine:
        raise UnsupportedModelError(
            f"config.json: query_pre_attn_scalar is {wanted:g}, but the engine computes "
            f"{family.arch} with {engine} here; the answers would be wrong"
        )
