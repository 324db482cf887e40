"""Checkpoints with Mamba2 layers for the oracle: Granite 4 hybrids, Nemotron-H, Falcon-H1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.converters.families.cases_granite import granite4
from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case

Tensors = dict[str, tuple[int, ...]]

GRANITE_KINDS = ["mamba", "mamba", "attention", "mamba"]
# What transformers' class for Granite's mixture fills in; upstream reads config.json itself.
_GRANITE_EXPERTS = {
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "intermediate_size": 72,
    "shared_intermediate_size": 56,
}
MULTIPLIERS = {
    "embedding_multiplier": 5.5,
    "lm_head_multiplier": 0.0195,
    "attention_in_multiplier": 0.7,
    "attention_out_multiplier": 0.9375,
    "key_multiplier": 0.39,
    "mlp_multipliers": [0.8838, 0.5859],
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.2357,
    "ssm_multipliers": [0.3535, 0.25, 0.35, 0.5, 0.3],
}


def granite_hybrid(**sizes: Any) -> dict[str, Any]:
    """As ibm-granite/granite-4.0-h-350m."""
    return granite4(
        **{
            "num_hidden_layers": len(GRANITE_KINDS),
            "layer_types": GRANITE_KINDS,
            "position_embedding_type": "nope",
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            **sizes,
        }
    )


def granite_moe(kinds: list[str], **sizes: Any) -> dict[str, Any]:
    """As ibm-granite/granite-4.0-h-tiny."""
    found = granite_hybrid(
        num_hidden_layers=len(kinds), layer_types=kinds, **_GRANITE_EXPERTS, **sizes
    )
    return found if "mamba" in kinds else {**found, "position_embedding_type": "rope"}


def granite_hybrid_shapes(settings: Mapping[str, Any]) -> Tensors:
    n_embd, n_vocab = settings["hidden_size"], settings["vocab_size"]
    shapes: Tensors = {"model.embed_tokens.weight": (n_vocab, n_embd)}
    for i, kind in enumerate(settings["layer_types"]):
        layer = f"model.layers.{i}."
        if settings["num_local_experts"]:
            n_expert, n_ff = settings["num_local_experts"], settings["intermediate_size"]
            moe = f"{layer}block_sparse_moe."
            shapes[f"{moe}router.layer.weight"] = (n_expert, n_embd)
            shapes[f"{moe}input_linear.weight"] = (n_expert, 2 * n_ff, n_embd)
            shapes[f"{moe}output_linear.weight"] = (n_expert, n_embd, n_ff)
        shared = settings["shared_intermediate_size"]
        shapes[f"{layer}shared_mlp.input_linear.weight"] = (2 * shared, n_embd)
        shapes[f"{layer}shared_mlp.output_linear.weight"] = (n_embd, shared)
        if kind == "mamba":
            shapes |= mixer_shapes(
                f"{layer}mamba.",
                n_embd,
                settings["mamba_n_heads"],
                settings["mamba_expand"] * n_embd,
                settings["mamba_n_groups"] * settings["mamba_d_state"],
                settings["mamba_d_conv"],
            )
        else:
            shapes |= attention_shapes(f"{layer}self_attn.", settings)
        shapes[f"{layer}input_layernorm.weight"] = (n_embd,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (n_embd,)
    shapes["model.norm.weight"] = (n_embd,)
    if not settings["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (n_vocab, n_embd)
    return shapes


def mixer_shapes(
    prefix: str,
    n_embd: int,
    n_head: int,
    inner: int,
    state: int,
    kernel: int,
    *,
    has_norm: bool = True,
) -> Tensors:
    """Tensors of a Mamba2 layer; `state` is groups times state size."""
    channels = inner + 2 * state
    return {
        f"{prefix}A_log": (n_head,),
        f"{prefix}D": (n_head,),
        f"{prefix}dt_bias": (n_head,),
        f"{prefix}conv1d.weight": (channels, 1, kernel),
        f"{prefix}conv1d.bias": (channels,),
        f"{prefix}in_proj.weight": (inner + channels + n_head, n_embd),
        **({f"{prefix}norm.weight": (inner,)} if has_norm else {}),
        f"{prefix}out_proj.weight": (n_embd, inner),
    }


def attention_shapes(prefix: str, settings: Mapping[str, Any]) -> Tensors:
    n_embd, n_head = settings["hidden_size"], settings["num_attention_heads"]
    head_dim = settings.get("head_dim") or n_embd // n_head
    q, kv = n_head * head_dim, settings["num_key_value_heads"] * head_dim
    return {
        f"{prefix}q_proj.weight": (q, n_embd),
        f"{prefix}k_proj.weight": (kv, n_embd),
        f"{prefix}v_proj.weight": (kv, n_embd),
        f"{prefix}o_proj.weight": (n_embd, q),
    }


def nemotron(pattern: str, **sizes: Any) -> dict[str, Any]:
    """As nvidia/NVIDIA-Nemotron-Nano-9B-v2, whose code of its own is never run."""
    return {
        "architectures": ["NemotronHForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
        "model_type": "nemotron_h",
        "hybrid_override_pattern": pattern,
        "num_hidden_layers": len(pattern),
        "vocab_size": 384,
        "hidden_size": 120,
        "intermediate_size": 200,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "layer_norm_epsilon": 1e-5,
        "mamba_num_heads": 8,
        "mamba_head_dim": 24,
        "ssm_state_size": 32,
        "n_groups": 4,
        "conv_kernel": 4,
        "expand": 2,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "use_conv_bias": True,
        "use_bias": False,
        "mamba_proj_bias": False,
        "mlp_bias": False,
        "attention_bias": False,
        "time_step_limit": [0.0, float("inf")],
        "tie_word_embeddings": False,
        **sizes,
    }


def nemotron_moe(pattern: str, **sizes: Any) -> dict[str, Any]:
    """As nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B; with `moe_latent_size` as Nemotron 3 Super."""
    return nemotron(
        pattern,
        **{
            "n_routed_experts": 6,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 72,
            "moe_shared_expert_intermediate_size": 136,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            **sizes,
        },
    )


def nemotron_shapes(settings: Mapping[str, Any], *, mtp: bool = False) -> Tensors:
    n_embd, n_vocab = settings["hidden_size"], settings["vocab_size"]
    shapes: Tensors = {"backbone.embeddings.weight": (n_vocab, n_embd)}
    for i, letter in enumerate(settings["hybrid_override_pattern"]):
        layer = f"backbone.layers.{i}."
        shapes[f"{layer}norm.weight"] = (n_embd,)
        shapes |= _nemotron_layer(f"{layer}mixer.", letter, settings)
    shapes["backbone.norm_f.weight"] = (n_embd,)
    shapes["lm_head.weight"] = (n_vocab, n_embd)
    if mtp:
        shapes["mtp.layers.0.eh_proj.weight"] = (n_embd, 2 * n_embd)
        shapes["mtp.layers.1.norm.weight"] = (n_embd,)
    return shapes


def _nemotron_layer(prefix: str, letter: str, settings: Mapping[str, Any]) -> Tensors:
    n_embd = settings["hidden_size"]
    if letter == "M":
        return mixer_shapes(
            prefix,
            n_embd,
            settings["mamba_num_heads"],
            settings["mamba_num_heads"] * settings["mamba_head_dim"],
            settings["n_groups"] * settings["ssm_state_size"],
            settings["conv_kernel"],
        )
    if letter == "*":
        return attention_shapes(prefix, settings)
    if letter == "-":
        return _up_and_down(prefix, n_embd, settings["intermediate_size"])
    n_expert, latent = settings["n_routed_experts"], settings.get("moe_latent_size")
    shapes: Tensors = {
        f"{prefix}gate.weight": (n_expert, n_embd),
        f"{prefix}gate.e_score_correction_bias": (n_expert,),
    }
    for expert in range(n_expert):
        n_ff = settings["moe_intermediate_size"]
        shapes |= _up_and_down(f"{prefix}experts.{expert}.", latent or n_embd, n_ff)
    shared = settings["moe_shared_expert_intermediate_size"]
    shapes |= _up_and_down(f"{prefix}shared_experts.", n_embd, shared)
    if latent:
        shapes[f"{prefix}fc1_latent_proj.weight"] = (latent, n_embd)
        shapes[f"{prefix}fc2_latent_proj.weight"] = (n_embd, latent)
    return shapes


def _up_and_down(prefix: str, n_embd: int, n_ff: int) -> Tensors:
    return {f"{prefix}up_proj.weight": (n_ff, n_embd), f"{prefix}down_proj.weight": (n_embd, n_ff)}


def falcon_h1(**sizes: Any) -> dict[str, Any]:
    """As tiiuae/Falcon-H1-0.5B-Instruct."""
    return {
        **config("FalconH1ForCausalLM", "falcon_h1", num_attention_heads=5, num_key_value_heads=1),
        "hidden_size": 160,
        "intermediate_size": 200,
        "head_dim": 24,
        "rope_theta": 1e11,
        "rms_norm_eps": 1e-5,
        "mamba_d_ssm": 192,
        "mamba_n_heads": 8,
        "mamba_d_head": 24,
        "mamba_n_groups": 2,
        "mamba_d_state": 32,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_rms_norm": False,
        "mamba_norm_before_gate": False,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "projectors_bias": False,
        "tie_word_embeddings": False,
        **MULTIPLIERS,
        **sizes,
    }


def falcon_shapes(settings: Mapping[str, Any]) -> Tensors:
    n_embd, n_ff = settings["hidden_size"], settings["intermediate_size"]
    vocabulary = (settings["vocab_size"], n_embd)
    shapes: Tensors = {"model.embed_tokens.weight": vocabulary}
    for i in range(settings["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[f"{layer}feed_forward.gate_proj.weight"] = (n_ff, n_embd)
        shapes |= _up_and_down(f"{layer}feed_forward.", n_embd, n_ff)
        shapes[f"{layer}input_layernorm.weight"] = (n_embd,)
        shapes |= mixer_shapes(
            f"{layer}mamba.",
            n_embd,
            settings["mamba_n_heads"],
            settings["mamba_d_ssm"],
            settings["mamba_n_groups"] * settings["mamba_d_state"],
            settings["mamba_d_conv"],
            has_norm=settings["mamba_rms_norm"],
        )
        shapes[f"{layer}pre_ff_layernorm.weight"] = (n_embd,)
        shapes |= attention_shapes(f"{layer}self_attn.", settings)
    shapes["model.final_layernorm.weight"] = (n_embd,)
    if not settings["tie_word_embeddings"]:
        shapes["lm_head.weight"] = vocabulary
    return shapes


_GRANITE, _GRANITE_MOE = granite_hybrid(), granite_moe(GRANITE_KINDS, tie_word_embeddings=False)
_ALL_ATTENTION = granite_moe(["attention"] * 2)
_NEMOTRON = nemotron("M-M-M*-M-")
_EXPERTS, _LATENT = nemotron_moe("MEM*E"), nemotron_moe("ME*E", moe_latent_size=80)
_FALCON = falcon_h1()
_FALCON_NORM = falcon_h1(
    mamba_rms_norm=True, tie_word_embeddings=True, lm_head_multiplier=5.5, mamba_d_conv=3
)

_WITH_TOKENS = {"vocab_size": 128256, "hidden_size": 64, "num_attention_heads": 2}
_GRANITE_REAL = granite_hybrid(
    vocab_size=49216, hidden_size=80, mamba_d_head=20, intermediate_size=96,
    shared_intermediate_size=96,
)  # fmt: skip
_NEMOTRON_REAL = nemotron("M-*", **_WITH_TOKENS)
del _NEMOTRON_REAL["auto_map"]  # upstream reads the tokenizer with it
_FALCON_REAL = falcon_h1(num_key_value_heads=1, **_WITH_TOKENS)

CASES = (
    Case(
        "granite-hybrid-vocabulary",
        _GRANITE_REAL,
        granite_hybrid_shapes(_GRANITE_REAL),
        vocabulary="granite",
    ),
    Case(
        "nemotron-vocabulary", _NEMOTRON_REAL, nemotron_shapes(_NEMOTRON_REAL), vocabulary="tekken"
    ),
    Case("falcon-vocabulary", _FALCON_REAL, falcon_shapes(_FALCON_REAL), vocabulary="falcon-h1"),
    Case("granite-hybrid", _GRANITE, granite_hybrid_shapes(_GRANITE)),
    Case("granite-hybrid-moe", _GRANITE_MOE, granite_hybrid_shapes(_GRANITE_MOE), n_shards=3),
    Case("granite4-moe-attention", _ALL_ATTENTION, granite_hybrid_shapes(_ALL_ATTENTION)),
    Case("nemotron-h", _NEMOTRON, nemotron_shapes(_NEMOTRON)),
    Case("nemotron-h-moe", _EXPERTS, nemotron_shapes(_EXPERTS), n_shards=2),
    Case("nemotron-h-latent", _LATENT, nemotron_shapes(_LATENT), dtype="F32"),
    Case("falcon-h1", _FALCON, falcon_shapes(_FALCON)),
    Case("falcon-h1-norm", _FALCON_NORM, falcon_shapes(_FALCON_NORM), dtype="F32"),
)
