"""Qwen3.5 checkpoints for the oracle, dense and mixture of experts, with and without MTP head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.converters.families.checkpoints import Case, Shapes

KINDS = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
# As Qwen/Qwen3.5-0.8B writes it, but for the sizes: 4 heads of 32 rotate a quarter each.
ROPE = {
    "mrope_interleaved": True,
    "mrope_section": [2, 1, 1],
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000000,
    "rope_type": "default",
}


def qwen35(**sizes: Any) -> dict[str, Any]:
    """A text configuration: 6 value heads of 16 on 2 key heads."""
    return {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "vocab_size": 384,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": len(KINDS),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": ROPE,
        "attn_output_gate": True,
        "attention_bias": False,
        "full_attention_interval": 4,
        "layer_types": KINDS,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "tie_word_embeddings": True,
        "mtp_num_hidden_layers": 1,
        **sizes,
    }


def qwen35moe(**sizes: Any) -> dict[str, Any]:
    dense = qwen35(
        architectures=["Qwen3_5MoeForCausalLM"],
        model_type="qwen3_5_moe_text",
        moe_intermediate_size=56,
        shared_expert_intermediate_size=72,
        num_experts=6,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    )
    del dense["intermediate_size"]
    return {**dense, **sizes}


def wrapped(text: Mapping[str, Any], model_type: str, architecture: str) -> dict[str, Any]:
    """The configuration of a checkpoint that sees images."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": {k: v for k, v in text.items() if k != "architectures"},
        "vision_config": {"depth": 1, "hidden_size": 32, "model_type": model_type},
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def qwen35_shapes(
    text: Mapping[str, Any], *, mtp: bool = False, fused: bool = True, fused_mtp: bool = True
) -> Shapes:
    """Tensors of the language model; `fused` and `fused_mtp`: experts as two tensors a layer."""
    n_embd, n_vocab = text["hidden_size"], text["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (n_vocab, n_embd)}
    kinds = text.get("layer_types") or [
        "linear_attention" if (i + 1) % text["full_attention_interval"] else "full_attention"
        for i in range(text["num_hidden_layers"])
    ]
    for i, kind in enumerate(kinds):
        mixer = _delta_net(text) if kind == "linear_attention" else _attention(text)
        shapes |= _layer(f"model.layers.{i}.", text, mixer, fused=fused)
    shapes["model.norm.weight"] = (n_embd,)
    if not text["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (n_vocab, n_embd)
    if mtp:
        shapes |= _layer("mtp.layers.0.", text, _attention(text), fused=fused_mtp)
        shapes["mtp.fc.weight"] = (n_embd, 2 * n_embd)
        for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
            shapes[f"mtp.{name}.weight"] = (n_embd,)
    return shapes


def with_tower(shapes: Shapes) -> Shapes:
    """The names of a checkpoint that sees images, with a small tower."""
    text = {
        name.replace("model.", "model.language_model.", 1)
        if name.startswith("model.")
        else name: shape
        for name, shape in shapes.items()
    }
    return {
        **text,
        "model.visual.patch_embed.proj.weight": (32, 3, 2, 16, 16),
        "model.visual.blocks.0.attn.qkv.weight": (96, 32),
        "model.visual.merger.linear_fc1.bias": (32,),
    }


def _layer(
    prefix: str, text: Mapping[str, Any], mixer: Shapes, *, fused: bool
) -> dict[str, tuple[int, ...]]:
    n_embd = text["hidden_size"]
    experts = "num_experts" in text
    rest = (
        _experts(text, fused=fused)
        if experts
        else _gated("mlp.", text["intermediate_size"], n_embd)
    )
    norms = {f"{name}_layernorm.weight": (n_embd,) for name in ("input", "post_attention")}
    return {prefix + name: shape for name, shape in {**mixer, **rest, **norms}.items()}


def _gated(prefix: str, n_ff: int, n_embd: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (n_ff, n_embd),
        f"{prefix}up_proj.weight": (n_ff, n_embd),
        f"{prefix}down_proj.weight": (n_embd, n_ff),
    }


def _experts(text: Mapping[str, Any], *, fused: bool) -> dict[str, tuple[int, ...]]:
    n_embd, n_ff, n = text["hidden_size"], text["moe_intermediate_size"], text["num_experts"]
    shapes = {
        "mlp.gate.weight": (n, n_embd),
        "mlp.shared_expert_gate.weight": (1, n_embd),
        **_gated("mlp.shared_expert.", text["shared_expert_intermediate_size"], n_embd),
    }
    if fused:
        shapes["mlp.experts.gate_up_proj"] = (n, 2 * n_ff, n_embd)
        shapes["mlp.experts.down_proj"] = (n, n_embd, n_ff)
        return shapes
    for expert in range(n):
        shapes |= _gated(f"mlp.experts.{expert}.", n_ff, n_embd)
    return shapes


def _attention(text: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    n_embd, dim = text["hidden_size"], text["head_dim"]
    q_rows, kv_rows = text["num_attention_heads"] * dim, text["num_key_value_heads"] * dim
    return {
        "self_attn.q_proj.weight": (2 * q_rows, n_embd),
        "self_attn.k_proj.weight": (kv_rows, n_embd),
        "self_attn.v_proj.weight": (kv_rows, n_embd),
        "self_attn.o_proj.weight": (n_embd, q_rows),
        "self_attn.q_norm.weight": (dim,),
        "self_attn.k_norm.weight": (dim,),
    }


def _delta_net(text: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    n_embd, dim, heads = (
        text["hidden_size"],
        text["linear_key_head_dim"],
        text["linear_num_value_heads"],
    )
    values = heads * dim
    conv = values + 2 * text["linear_num_key_heads"] * dim
    return {
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.conv1d.weight": (conv, 1, text["linear_conv_kernel_dim"]),
        "linear_attn.in_proj_qkv.weight": (conv, n_embd),
        "linear_attn.in_proj_z.weight": (values, n_embd),
        "linear_attn.in_proj_a.weight": (heads, n_embd),
        "linear_attn.in_proj_b.weight": (heads, n_embd),
        "linear_attn.norm.weight": (dim,),
        "linear_attn.out_proj.weight": (n_embd, values),
    }


_DENSE, _MOE = qwen35(), qwen35moe()
_WRAPPED = wrapped(_DENSE, "qwen3_5", "Qwen3_5ForConditionalGeneration")
_WRAPPED_MOE = wrapped(_MOE, "qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration")
# The 0.8B and 2B models have as many value heads as key heads.
_EVEN = qwen35(linear_num_key_heads=3, linear_num_value_heads=3, tie_word_embeddings=False)
_ROPELESS = {"rope_theta": 500000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
_SPARSE = {k: v for k, v in qwen35(rope_parameters=_ROPELESS).items() if k != "layer_types"}
_REAL = wrapped(
    qwen35(vocab_size=152064, hidden_size=64), "qwen3_5", "Qwen3_5ForConditionalGeneration"
)

CASES = (
    Case(
        "qwen35-vocabulary",
        _REAL,
        with_tower(qwen35_shapes(_REAL["text_config"], mtp=True)),
        vocabulary="qwen35",
        keep_mtp=False,
    ),
    Case("qwen35-bf16", _DENSE, qwen35_shapes(_DENSE), keep_mtp=False),
    Case("qwen35-f16", _EVEN, qwen35_shapes(_EVEN), dtype="F16", keep_mtp=False),
    Case("qwen35-f32-default-sections", _SPARSE, qwen35_shapes(_SPARSE), "F32", keep_mtp=False),
    Case(
        "qwen35-multimodal",
        _WRAPPED,
        with_tower(qwen35_shapes(_DENSE, mtp=True)),
        n_shards=3,
        keep_mtp=False,
    ),
    Case("qwen35-mtp", _WRAPPED, with_tower(qwen35_shapes(_DENSE, mtp=True)), "F16", keep_mtp=True),
    Case("qwen35moe-bf16", _MOE, qwen35_shapes(_MOE), keep_mtp=False),
    Case(
        "qwen35moe-mtp",
        _WRAPPED_MOE,
        with_tower(qwen35_shapes(_MOE, mtp=True, fused_mtp=False)),
        n_shards=4,
        keep_mtp=True,
    ),
    Case(
        "qwen35moe-single-experts",
        _MOE,
        qwen35_shapes(_MOE, mtp=True, fused=False),
        keep_mtp=False,
    ),
)
