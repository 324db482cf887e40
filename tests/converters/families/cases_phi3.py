"""Phi-3, Phi-3.5 and Phi-4-mini checkpoints for the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case


def phi3_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of a Phi-3: fused query, key and value, fused gate and up."""
    n_embd, n_ff = settings["hidden_size"], settings["intermediate_size"]
    head_dim = n_embd // settings["num_attention_heads"]
    rows = (settings["num_attention_heads"] + 2 * settings["num_key_value_heads"]) * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (settings["vocab_size"], n_embd)
    }
    for i in range(settings["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[f"{layer}self_attn.qkv_proj.weight"] = (rows, n_embd)
        shapes[f"{layer}self_attn.o_proj.weight"] = (n_embd, n_embd)
        shapes[f"{layer}mlp.gate_up_proj.weight"] = (2 * n_ff, n_embd)
        shapes[f"{layer}mlp.down_proj.weight"] = (n_embd, n_ff)
        shapes[f"{layer}input_layernorm.weight"] = (n_embd,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (n_embd,)
    shapes["model.norm.weight"] = (n_embd,)
    if not settings.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (settings["vocab_size"], n_embd)
    return shapes


def phi3(**sizes: Any) -> dict[str, Any]:
    return config("Phi3ForCausalLM", "phi3", **{"original_max_position_embeddings": 512, **sizes})


def longrope(pairs: int, kind: str = "longrope") -> dict[str, Any]:
    return {
        "type": kind,
        "short_factor": [1.0 + 0.013 * i for i in range(pairs)],
        "long_factor": [1.1 + 0.71 * i for i in range(pairs)],
    }


_MINI_4K = phi3(num_key_value_heads=5, sliding_window=2047, max_position_embeddings=512)
_LONG = phi3(num_key_value_heads=1, rope_scaling=longrope(32), sliding_window=None)
_SU = phi3(rope_scaling=longrope(32, "su"), sliding_window=262144)
_UNSTRETCHED = phi3(rope_scaling=longrope(32), max_position_embeddings=512)
_PHI4_MINI = phi3(
    hidden_size=288,
    num_attention_heads=6,
    num_key_value_heads=2,
    partial_rotary_factor=0.75,
    rope_scaling=longrope(18),
    sliding_window=262144,
    tie_word_embeddings=True,
)

_SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
_PHI3_REAL = phi3(**_SMALL, vocab_size=32064)
_PHI4_REAL = phi3(**_SMALL, vocab_size=50304, tie_word_embeddings=True)

CASES = (
    Case("phi3-vocabulary", _PHI3_REAL, phi3_shapes(_PHI3_REAL), vocabulary="phi-3"),
    Case("phi4-mini-vocabulary", _PHI4_REAL, phi3_shapes(_PHI4_REAL), vocabulary="phi4-mini"),
    Case("phi3-mini-4k", _MINI_4K, phi3_shapes(_MINI_4K)),
    Case("phi3-mini-128k", _LONG, phi3_shapes(_LONG), dtype="F16"),
    Case("phi3-su", _SU, phi3_shapes(_SU), n_shards=2),
    Case("phi3-unstretched", _UNSTRETCHED, phi3_shapes(_UNSTRETCHED), dtype="F32"),
    Case("phi4-mini", _PHI4_MINI, phi3_shapes(_PHI4_MINI)),
)
