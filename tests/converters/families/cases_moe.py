"""Qwen3-MoE checkpoints for the oracle: six experts, two of them used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case, decoder_shapes


def qwen3moe(**sizes: Any) -> dict[str, Any]:
    return config(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        **{
            "hidden_size": 96,
            "intermediate_size": 224,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 56,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "rope_theta": 1e6,
            "use_sliding_window": False,
            "sliding_window": None,
            **sizes,
        },
    )


def qwen3moe_shapes(
    settings: Mapping[str, Any], *, fused: str | None = None, **options: Any
) -> dict[str, tuple[int, ...]]:
    """Tensors of a Qwen3-MoE; `fused` is the ending of experts kept as two tensors (`.weight` or
    nothing), None for three tensors per expert.
    """
    shapes = decoder_shapes(settings, head_norms=True, **options)
    n_embd, n_ff = settings["hidden_size"], settings["moe_intermediate_size"]
    n_expert = settings["num_experts"]
    shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
    for i in range(settings["num_hidden_layers"]):
        mlp = f"model.layers.{i}.mlp."
        shapes[f"{mlp}gate.weight"] = (n_expert, n_embd)
        if fused is not None:
            shapes[f"{mlp}experts.gate_up_proj{fused}"] = (n_expert, 2 * n_ff, n_embd)
            shapes[f"{mlp}experts.down_proj{fused}"] = (n_expert, n_embd, n_ff)
            continue
        for expert in range(n_expert):
            for name in ("gate_proj", "up_proj", "down_proj"):
                shape = (n_embd, n_ff) if name == "down_proj" else (n_ff, n_embd)
                shapes[f"{mlp}experts.{expert}.{name}.weight"] = shape
    return shapes


_TIED = qwen3moe(tie_word_embeddings=True, num_hidden_layers=11, hidden_size=64)
_BIASED = qwen3moe(attention_bias=True)

_REAL = qwen3moe(vocab_size=151936, hidden_size=64, tie_word_embeddings=True)

CASES = (
    Case("qwen3moe-vocabulary", _REAL, qwen3moe_shapes(_REAL), vocabulary="qwen2"),
    Case("qwen3moe-bf16", qwen3moe(), qwen3moe_shapes(qwen3moe())),
    # Layers 10 and 2 change places in the order by name, and shards cut through layers' experts.
    Case("qwen3moe-sharded", _TIED, qwen3moe_shapes(_TIED), n_shards=5),
    Case("qwen3moe-f16", qwen3moe(), qwen3moe_shapes(qwen3moe()), dtype="F16"),
    Case("qwen3moe-biased", _BIASED, qwen3moe_shapes(_BIASED, attention_bias="qkvo"), dtype="F32"),
    Case("qwen3moe-fused", qwen3moe(), qwen3moe_shapes(qwen3moe(), fused="")),
    Case("qwen3moe-fused-weight", qwen3moe(), qwen3moe_shapes(qwen3moe(), fused=".weight")),
)
