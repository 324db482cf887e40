"""Granite checkpoints, dense and mixture of experts, for the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case, decoder_shapes

MULTIPLIERS = {
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}


def granite(**sizes: Any) -> dict[str, Any]:
    return config(
        "GraniteForCausalLM",
        "granite",
        **{"num_attention_heads": 10, "num_key_value_heads": 2, **MULTIPLIERS, **sizes},
    )


def moe(kind: str, **sizes: Any) -> dict[str, Any]:
    return {
        **granite(hidden_size=160, intermediate_size=72, num_local_experts=6, **sizes),
        "architectures": [f"GraniteMoe{kind}ForCausalLM"],
        "model_type": f"granitemoe{kind.lower()}",
        "num_experts_per_tok": 2,
    }


def moe_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of a Granite mixture, with a shared expert where the configuration has one."""
    shapes = decoder_shapes(settings)
    shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
    n_embd, n_ff = settings["hidden_size"], settings["intermediate_size"]
    n_expert, shared = settings["num_local_experts"], settings.get("shared_intermediate_size")
    for i in range(settings["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[f"{layer}block_sparse_moe.router.layer.weight"] = (n_expert, n_embd)
        shapes[f"{layer}block_sparse_moe.input_linear.weight"] = (n_expert, 2 * n_ff, n_embd)
        shapes[f"{layer}block_sparse_moe.output_linear.weight"] = (n_expert, n_embd, n_ff)
        if shared:
            shapes[f"{layer}shared_mlp.input_linear.weight"] = (2 * shared, n_embd)
            shapes[f"{layer}shared_mlp.output_linear.weight"] = (n_embd, shared)
    return shapes


def granite4(**sizes: Any) -> dict[str, Any]:
    """As ibm-granite/granite-4.0-350m: a hybrid by name only. Nothing is left to defaults: upstream
    reads `config.json` itself here, not transformers' configuration object.
    """
    return {
        **granite(hidden_size=160, num_local_experts=0, num_experts_per_tok=0),
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "shared_intermediate_size": 608,
        "position_embedding_type": "rope",
        "layer_types": ["attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 40,
        "mamba_d_state": 32,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "rope_theta": 1e7,
        "tie_word_embeddings": True,
        **sizes,
    }


def granite4_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of a Granite 4 without Mamba layers: gate and up fused, as a shared expert."""
    shapes = decoder_shapes(settings)
    shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
    n_embd, n_ff = settings["hidden_size"], settings["shared_intermediate_size"]
    for i in range(settings["num_hidden_layers"]):
        shapes[f"model.layers.{i}.shared_mlp.input_linear.weight"] = (2 * n_ff, n_embd)
        shapes[f"model.layers.{i}.shared_mlp.output_linear.weight"] = (n_embd, n_ff)
    return shapes


_PLAIN = granite(tie_word_embeddings=True)
_BIASED = granite(attention_bias=True, mlp_bias=True)
# Nothing said about multipliers: all are 1, and are written.
_DEFAULTS = {key: value for key, value in granite().items() if key not in MULTIPLIERS}
_MOE, _SHARED = moe(""), moe("Shared", shared_intermediate_size=56, tie_word_embeddings=True)

_SMALL = {"vocab_size": 49216, "hidden_size": 80, "tie_word_embeddings": True}
_REAL, _GRANITE4_REAL = granite(**_SMALL), granite4(**_SMALL, mamba_d_head=20)

CASES = (
    Case("granite-vocabulary", _REAL, decoder_shapes(_REAL), vocabulary="granite"),
    Case(
        "granite4-vocabulary",
        _GRANITE4_REAL,
        granite4_shapes(_GRANITE4_REAL),
        vocabulary="granite",
    ),
    Case("granite-tied", _PLAIN, decoder_shapes(_PLAIN)),
    Case(
        "granite-biased",
        _BIASED,
        decoder_shapes(_BIASED, attention_bias="qkvo", mlp_bias=True),
        dtype="F16",
    ),
    Case("granite-defaults", _DEFAULTS, decoder_shapes(_DEFAULTS), dtype="F32"),
    Case("granitemoe", _MOE, moe_shapes(_MOE), n_shards=2),
    Case("granitemoe-shared", _SHARED, moe_shapes(_SHARED), dtype="F16"),
    Case("granite4-attention-only", granite4(), granite4_shapes(granite4())),
)
