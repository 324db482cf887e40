"""Dense decoders with a quirk or two of their own: EXAONE 4, ERNIE 4.5, Hunyuan, OLMo 2 and 3.

Upstream: conversion/{exaone,ernie,hunyuan,olmo}.py; engine: src/models/exaone4.cpp, ernie4-5.cpp,
hunyuan-vl.cpp, olmo2.cpp.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.converters.families import settings
from boardfit.converters.families.decoder import DecoderFamily, Dimensions, window_values
from boardfit.converters.families.gemma import sliding_layers
from boardfit.converters.families.layout import Checkpoint, TensorRule
from boardfit.converters.families.rope import llama3_rope_freqs, rope_parameters
from boardfit.converters.families.settings import Config, quote
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import UnsupportedModelError

# EXAONE 4's only size with windows; the engine knows it by its layer count.
_LAYERS_WITH_WINDOWS = 64
# What Hunyuan's published models were trained for, and what they state.
_HUNYUAN_CONTEXT = 262144
_HUNYUAN_STATED = (32768, _HUNYUAN_CONTEXT)


class Exaone4(DecoderFamily):
    """`Exaone4ForCausalLM`.

    Norms stand after attention and feed-forward part, none before, and over each query and key
    head. Only the size of 64 layers has sliding windows, and layers that see the whole context
    rotate nothing there. Every other size must have no window.
    """

    arch = "exaone4"
    parts = ("attention", "head_norms", "mlp", "norms_after")

    def dimensions(self, config: Config) -> Dimensions:
        dims = super().dimensions(config)
        if dims.q_rows != dims.n_embd:
            raise UnsupportedModelError(
                f"config.json: head_dim {dims.head_dim} times {dims.n_head} heads is not "
                f"hidden_size {dims.n_embd}, which the engine's EXAONE 4 needs"
            )
        return dims

    def extra_tensors(self, config: Config, dims: Dimensions) -> list[TargetTensor]:
        return llama3_rope_freqs(rope_parameters(config), dims.head_dim)

    def sliding(self, config: Config) -> Sequence[bool]:
        """`layer_types`, else a period or a pattern such as `LLLG`. Raises UnsupportedModelError
        where the engine, which goes by the number of layers, would compute something else.
        """
        size = settings.optional_int(config, "sliding_window")
        n_layer = settings.require_int(config, "num_hidden_layers")
        if (size is not None) != (n_layer == _LAYERS_WITH_WINDOWS):
            raise UnsupportedModelError(
                f"config.json: sliding_window is {size} with {n_layer} layers; the engine's "
                f"EXAONE 4 has windows with {_LAYERS_WITH_WINDOWS} layers, and with no other number"
            )
        if size is None:
            return ()
        pattern = config.get("sliding_window_pattern", 4)
        if isinstance(pattern, str) and config.get("layer_types") is None:
            if not pattern or set(pattern) - {"L", "G"}:
                raise UnsupportedModelError(
                    f"config.json: sliding_window_pattern is {quote(pattern)}; known here: a "
                    "number, or letters L and G"
                )
            return [pattern[i % len(pattern)] == "L" for i in range(n_layer)]
        given = {} if isinstance(pattern, str) else config
        period = settings.optional_int(given, "sliding_window_pattern", 4) or 4
        return sliding_layers(config, period=period)

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        sliding = self.sliding(config)
        windows = window_values(config, sliding) if sliding else {}
        return {"vocab_size": dims.n_vocab, **windows}


class Olmo2(DecoderFamily):
    """`Olmo2ForCausalLM`.

    Norms stand after attention and feed-forward part, none before; query and key are normed over
    all their heads at once; the head is never the embedding.
    """

    arch = "olmo2"
    parts = ("attention", "olmo_head_norms", "mlp", "norms_after")
    name_with_head = "OLMo 2"


class Olmo3(Olmo2):
    """`Olmo3ForCausalLM`, which upstream stores as `olmo2` with a window in three layers of four,
    the pattern written out.
    """

    def sliding(self, config: Config) -> Sequence[bool]:
        return sliding_layers(config, period=4)

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        return window_values(config, self.sliding(config))


class Ernie45(DecoderFamily):
    """`Ernie4_5ForCausalLM`. Its rotary embeddings turn neighbours, as the engine's do, so no row
    is reordered. The engine has no biases for it.
    """

    arch = "ernie4_5"
    parts = ("attention", "mlp", "norms")

    def layer_rules(self, config: Config, dims: Dimensions, layer: int) -> Mapping[str, TensorRule]:
        settings.require_value(config, "use_bias", False)
        return super().layer_rules(config, dims, layer)

    def rename(self, name: str) -> str | None:
        return name.replace("ernie.", "model.", 1) if name.startswith("ernie.") else name


class HunyuanDense(DecoderFamily):
    """`HunYuanDenseV1ForCausalLM`: norms over each query and key head, after the rotation.

    A stretched context is a larger base of the rotation (`alpha`), which is computed here, as
    upstream does.
    """

    arch = "hunyuan-dense"
    parts = ("attention", "hunyuan_head_norms", "mlp", "norms")

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """With the stretched base and context in their places."""
        config = super().config(checkpoint)
        settings.require_value(config, "attention_bias", False)
        settings.require_value(config, "num_experts", 1)
        config.pop("num_experts", None)
        rope = rope_parameters(config)
        if rope.get("rope_type") == "dynamic":
            stated = config.get("max_position_embeddings")
            if rope.get("alpha") is None or stated not in _HUNYUAN_STATED:
                raise UnsupportedModelError(
                    f"config.json: rope scaling is dynamic with alpha {rope.get('alpha')!r} and "
                    f"max_position_embeddings {stated!r}; expected a number, and one of "
                    f"{', '.join(map(str, _HUNYUAN_STATED))}"
                )
            size = self.head_dim(config)
            alpha = settings.require_float(rope, "alpha")
            base = settings.require_float(rope, "rope_theta") * alpha ** (size / (size - 2))
            config["rope_parameters"] = {**rope, "rope_theta": base}
            config["max_position_embeddings"] = _HUNYUAN_CONTEXT
        return config

    def extra_metadata(self, config: Config, dims: Dimensions) -> dict[str, Any]:
        if rope_parameters(config).get("rope_type") != "dynamic":
            return {}
        return {
            "rope.scaling.type": "none",
            "rope.scaling.factor": 1.0,
            "rope.scaling.original_context_length": _HUNYUAN_CONTEXT,
        }
