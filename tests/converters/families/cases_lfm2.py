"""LFM2 checkpoints, dense and mixture of experts, for the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.converters.families.checkpoints import Case

KINDS = ["conv", "conv", "full_attention", "conv", "full_attention"]


def lfm2(**sizes: Any) -> dict[str, Any]:
    return {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "vocab_size": 384,
        "hidden_size": 160,
        "intermediate_size": 300,
        "num_hidden_layers": len(KINDS),
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": False,
        "layer_types": KINDS,
        **sizes,
    }


def lfm2_shapes(
    settings: Mapping[str, Any], n_ff: int, *, kinds: Sequence[str] = KINDS, n_dense: int = 99
) -> dict[str, tuple[int, ...]]:
    """Tensors of an LFM2; layers from `n_dense` on have experts."""
    n_embd, kernel = settings["hidden_size"], settings["conv_L_cache"]
    head_dim = n_embd // settings["num_attention_heads"]
    kv_rows = settings["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (settings["vocab_size"], n_embd),
        "model.embedding_norm.weight": (n_embd,),
    }
    for i, kind in enumerate(kinds):
        layer = f"model.layers.{i}."
        if kind == "conv":
            shapes[f"{layer}conv.conv.weight"] = (n_embd, 1, kernel)
            shapes[f"{layer}conv.in_proj.weight"] = (3 * n_embd, n_embd)
            shapes[f"{layer}conv.out_proj.weight"] = (n_embd, n_embd)
        else:
            for name, rows in (("q", n_embd), ("k", kv_rows), ("v", kv_rows)):
                shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, n_embd)
            shapes[f"{layer}self_attn.out_proj.weight"] = (n_embd, n_embd)
            shapes[f"{layer}self_attn.q_layernorm.weight"] = (head_dim,)
            shapes[f"{layer}self_attn.k_layernorm.weight"] = (head_dim,)
        if i < n_dense:
            shapes |= _matrices(f"{layer}feed_forward.", n_embd, n_ff)
        else:
            n_expert = settings["num_experts"]
            shapes[f"{layer}feed_forward.gate.weight"] = (n_expert, n_embd)
            shapes[f"{layer}feed_forward.expert_bias"] = (n_expert,)
            for expert in range(n_expert):
                prefix = f"{layer}feed_forward.experts.{expert}."
                shapes |= _matrices(prefix, n_embd, settings["moe_intermediate_size"])
        shapes[f"{layer}operator_norm.weight"] = (n_embd,)
        shapes[f"{layer}ffn_norm.weight"] = (n_embd,)
    return shapes


def _matrices(prefix: str, n_embd: int, n_ff: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}w1.weight": (n_ff, n_embd),
        f"{prefix}w2.weight": (n_embd, n_ff),
        f"{prefix}w3.weight": (n_ff, n_embd),
    }


# 300 → 2/3 of it is 200 → 1.3 times that is 260 → up to a multiple of 64: 320.
_ADJUSTED = lfm2(block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1.3, block_multiple_of=64)
# The spellings of LiquidAI/LFM2-1.2B's first configuration.
_OLDER = {
    key: value
    for key, value in lfm2(
        block_ff_dim=300, full_attn_idxs=[2, 4], theta=500000.0, tie_embedding=True
    ).items()
    if key not in ("layer_types", "intermediate_size", "rope_theta")
}
# The keys of LiquidAI/LFM2.5-1.2B-Instruct: the same architecture as LFM2.
_LFM25 = {
    **{key: value for key, value in lfm2().items() if key != "rope_theta"},
    "block_auto_adjust_ff_dim": True,
    "block_dim": 160,
    "block_ff_dim": 300,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 40,
    "block_use_swiglu": True,
    "conv_bias": False,
    "conv_dim": 160,
    "dtype": "bfloat16",
    "num_heads": 5,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "tie_embedding": True,
    "use_pos_enc": True,
}
_MOE = lfm2(
    architectures=["Lfm2MoeForCausalLM"],
    model_type="lfm2_moe",
    num_dense_layers=2,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=72,
    norm_topk_prob=True,
    use_expert_bias=True,
    routed_scaling_factor=1.0,
)

_REAL = lfm2(vocab_size=128256, hidden_size=64, num_attention_heads=2)

# As LiquidAI/LFM2.5-VL-450M, with two tensors of its vision part.
_VL = {
    "architectures": ["Lfm2VlForConditionalGeneration"],
    "model_type": "lfm2_vl",
    "text_config": lfm2(),
    "vision_config": {"model_type": "siglip2_vision_model", "hidden_size": 64},
    "tie_embedding": True,
    "vocab_size": 384,
}
_VL_SHAPES = {
    **{
        name.replace("model.", "model.language_model.", 1): shape
        for name, shape in lfm2_shapes(lfm2(), 300).items()
    },
    "model.vision_tower.vision_model.embeddings.patch_embedding.weight": (64, 768),
    "model.multi_modal_projector.linear_1.weight": (160, 256),
}

CASES = (
    Case("lfm2-vocabulary", _REAL, lfm2_shapes(_REAL, 300), vocabulary="lfm2"),
    Case("lfm2-bf16", lfm2(), lfm2_shapes(lfm2(), 300)),
    Case("lfm2-f16", lfm2(conv_L_cache=4), lfm2_shapes(lfm2(conv_L_cache=4), 300), dtype="F16"),
    Case("lfm2-adjusted", _ADJUSTED, lfm2_shapes(_ADJUSTED, 320), n_shards=3),
    Case("lfm2-older-config", _OLDER, lfm2_shapes(_OLDER, 300), dtype="F32"),
    Case("lfm2.5", _LFM25, lfm2_shapes(_LFM25, 200)),
    Case("lfm2-vl", _VL, _VL_SHAPES),
    Case("lfm2-moe", _MOE, lfm2_shapes(_MOE, 300, n_dense=2), n_shards=4),
)
