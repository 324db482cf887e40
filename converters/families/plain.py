"""Dense decoders with a quirk or two of their own: EXAONE 4, ERNIE 4.5, Hunyuan, OLMo 2 and 3.

Upstream: conversion/{exaone,ernie,hunyuan,olmo}.py; engine: src/models/exaone4.cpp, ernie4-5.cpp,
hunyuan-vl.cpp, olmo2.cpp.
"""

from collections.abc import Sequence
from typing import Any

from boardfit.converters.families.decoder import DecoderFamily, Dimensions
from boardfit.converters.families.gemma import WindowedFamily
from boardfit.converters.families.rope import llama3_rope_freqs, rope_parameters
from boardfit.converters.families.settings import quote
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import UnsupportedModelError

# EXAONE 4's only size with windows; the engine knows it by its layer count.
_LAYERS_WITH_WINDOWS = 64
# What Hunyuan's published models were trained for, and what they state.
_HUNYUAN_CONTEXT = 262144
_HUNYUAN_STATED = (32768, _HUNYUAN_CONTEXT)


class Exaone4(WindowedFamily):
    """`Exaone4ForCausalLM`.

    Norms stand after attention and feed-forward part, none before, and over each query and key
    head. Only the size of 64 layers has sliding windows, and layers that see the whole context
    rotate nothing there. Every other size must have no window.
    """

    arch = "exaone4"
    parts = ("attention", "head_norms", "mlp", "norms_after")

    def dimensions(self) -> Dimensions:
        dims = super().dimensions()
        if dims.q_rows != dims.n_embd:
            raise UnsupportedModelError(
                f"config.json: head_dim {dims.head_dim} times {dims.n_head} heads is not "
                f"hidden_size {dims.n_embd}, which the engine's EXAONE 4 needs"
            )
        return dims

    def extra_tensors(self) -> list[TargetTensor]:
        return llama3_rope_freqs(rope_parameters(self.config), self.dims.head_dim)

    @property
    def sliding(self) -> Sequence[bool]:
        """`layer_types`, else a period or a pattern such as `LLLG`. Raises UnsupportedModelError
        where the engine, which goes by the number of layers, would compute something else.
        """
        config, n_layer = self.config, self.n_layers()
        size = config.whole_or("sliding_window", None)
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
        named = isinstance(pattern, str)
        return self.find_sliding(4 if named else config.whole_or("sliding_window_pattern", 4))

    def extra_metadata(self) -> dict[str, Any]:
        windows = self.window_values(self.sliding) if self.sliding else {}
        return {"vocab_size": self.dims.n_vocab, **windows}


class Olmo2(DecoderFamily):
    """`Olmo2ForCausalLM`.

    Norms stand after attention and feed-forward part, none before; query and key are normed over
    all their heads at once; the head is never the embedding.
    """

    arch = "olmo2"
    parts = ("attention", "olmo_head_norms", "mlp", "norms_after")


class Olmo3(Olmo2, WindowedFamily):
    """`Olmo3ForCausalLM`, which upstream stores as `olmo2` with a window in three layers of four,
    the pattern written out.
    """

    engine_period = 4

    def extra_metadata(self) -> dict[str, Any]:
        return self.window_values(self.sliding)


class Ernie45(DecoderFamily):
    """`Ernie4_5ForCausalLM`. Its rotary embeddings turn neighbours, as the engine's do, so no row
    is reordered. The engine has no biases for it.
    """

    arch = "ernie4_5"
    parts = ("attention", "mlp", "norms")

    def rename(self, name: str) -> str | None:
        return name.replace("ernie.", "model.", 1) if name.startswith("ernie.") else name


class HunyuanDense(DecoderFamily):
    """`HunYuanDenseV1ForCausalLM`: norms over each query and key head, after the rotation.

    A stretched context is a larger base of the rotation (`alpha`), which is computed here, as
    upstream does.
    """

    arch = "hunyuan-dense"
    parts = ("attention", "hunyuan_head_norms", "mlp", "norms")

    def adjust(self) -> None:
        """With the stretched base and context in their places."""
        config = self.config
        config.pop("num_experts", None)
        rope = rope_parameters(config)
        self._is_stretched = rope.get("rope_type") == "dynamic"
        if not self._is_stretched:
            return
        stated = config.get("max_position_embeddings")
        if rope.get("alpha") is None or stated not in _HUNYUAN_STATED:
            raise UnsupportedModelError(
                f"config.json: rope scaling is dynamic with alpha {rope.get('alpha')!r} and "
                f"max_position_embeddings {stated!r}; expected a number, and one of "
                f"{', '.join(map(str, _HUNYUAN_STATED))}"
            )
        size = self.head_dim()
        base = rope.number("rope_theta") * rope.number("alpha") ** (size / (size - 2))
        config["rope_parameters"] = {**rope, "rope_theta": base}
        config["max_position_embeddings"] = _HUNYUAN_CONTEXT

    def extra_metadata(self) -> dict[str, Any]:
        if not self._is_stretched:
            return {}
        return {
            "rope.scaling.type": "none",
            "rope.scaling.factor": 1.0,
            "rope.scaling.original_context_length": _HUNYUAN_CONTEXT,
        }
