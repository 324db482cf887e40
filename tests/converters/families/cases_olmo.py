"""OLMo 2 and OLMo 3 checkpoints for the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case, decoder_shapes


def olmo2(**sizes: Any) -> dict[str, Any]:
    return config(
        "Olmo2ForCausalLM",
        "olmo2",
        **{"num_attention_heads": 10, "num_key_value_heads": 5, "rope_theta": 500000.0, **sizes},
    )


def olmo3(**sizes: Any) -> dict[str, Any]:
    settings = olmo2(num_hidden_layers=6, hidden_size=160, sliding_window=64, **sizes)
    return {**settings, "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3"}


def olmo_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of an OLMo 2: norms over all query and all key rows, norms after both parts."""
    shapes = decoder_shapes(settings)
    n_embd, n_head = settings["hidden_size"], settings["num_attention_heads"]
    for i in range(settings["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        del shapes[f"{layer}input_layernorm.weight"]
        shapes[f"{layer}post_feedforward_layernorm.weight"] = (n_embd,)
        shapes[f"{layer}self_attn.q_norm.weight"] = (n_embd,)
        kv_rows = n_embd // n_head * settings["num_key_value_heads"]
        shapes[f"{layer}self_attn.k_norm.weight"] = (kv_rows,)
    return shapes


_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "attention_factor": 1.2079,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_LAYER_TYPES = ["sliding_attention", "full_attention"] * 3
_DEFAULT_PATTERN, _GIVEN_PATTERN = olmo3(rope_scaling=_YARN), olmo3(layer_types=_LAYER_TYPES)

_REAL = olmo2(vocab_size=50304, hidden_size=80)

CASES = (
    Case("olmo2-vocabulary", _REAL, olmo_shapes(_REAL), vocabulary="olmo2"),
    Case("olmo2-bf16", olmo2(), olmo_shapes(olmo2())),
    Case("olmo2-f32", olmo2(), olmo_shapes(olmo2()), dtype="F32", n_shards=2),
    Case("olmo2-f16", olmo2(), olmo_shapes(olmo2()), dtype="F16"),
    Case("olmo3-yarn", _DEFAULT_PATTERN, olmo_shapes(_DEFAULT_PATTERN)),
    Case("olmo3-layer-types", _GIVEN_PATTERN, olmo_shapes(_GIVEN_PATTERN), dtype="F16"),
)
