"""gpt-oss checkpoints for the oracle: experts as MXFP4, as published, and as floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case, decoder_shapes


def gpt_oss(**sizes: Any) -> dict[str, Any]:
    return config(
        "GptOssForCausalLM",
        "gpt_oss",
        **{
            "hidden_size": 96,
            "intermediate_size": 64,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_hidden_layers": 3,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 64,
            "rope_theta": 150000,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
            "attention_bias": True,
            "swiglu_limit": 7.0,
            **sizes,
        },
    )


def gpt_oss_shapes(settings: Mapping[str, Any], *, packed: bool) -> dict[str, tuple[int, ...]]:
    """Tensors of a gpt-oss; `packed` experts are blocks and scales, others lie transposed."""
    shapes = decoder_shapes(settings, attention_bias="qkvo")
    shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
    n_expert, n_embd = settings["num_local_experts"], settings["hidden_size"]
    sizes = {
        "gate_up_proj": (2 * settings["intermediate_size"], n_embd),
        "down_proj": (n_embd, settings["intermediate_size"]),
    }
    for i in range(settings["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[f"{layer}self_attn.sinks"] = (settings["num_attention_heads"],)
        shapes[f"{layer}mlp.router.weight"] = (n_expert, n_embd)
        shapes[f"{layer}mlp.router.bias"] = (n_expert,)
        for name, (rows, columns) in sizes.items():
            experts = f"{layer}mlp.experts.{name}"
            shapes[f"{experts}_bias"] = (n_expert, rows)
            if packed:
                shapes[f"{experts}_blocks"] = (n_expert, rows, columns // 32, 16)
                shapes[f"{experts}_scales"] = (n_expert, rows, columns // 32)
            else:
                shapes[experts] = (n_expert, columns, rows)
    return shapes


_PACKED = gpt_oss(quantization_config={"quant_method": "mxfp4"})
_REAL = {**_PACKED, "vocab_size": 128256, "num_hidden_layers": 2}
# Square weights: the shape does not show whether they lie transposed.
_SQUARE = {**_PACKED, "intermediate_size": 96}

CASES = (
    Case("gpt-oss-vocabulary", _REAL, gpt_oss_shapes(_REAL, packed=True), vocabulary="gpt-oss"),
    Case("gpt-oss-mxfp4", _PACKED, gpt_oss_shapes(_PACKED, packed=True)),
    Case("gpt-oss-square", _SQUARE, gpt_oss_shapes(_SQUARE, packed=True)),
    Case("gpt-oss-bf16", gpt_oss(), gpt_oss_shapes(gpt_oss(), packed=False), n_shards=2),
    Case("gpt-oss-f16", gpt_oss(), gpt_oss_shapes(gpt_oss(), packed=False), dtype="F16"),
)
