"""Gemma 3n and Gemma 4 checkpoints for the oracle: two head sizes, shared keys and values."""

from __future__ import annotations

from typing import Any

from tests.converters.families.cases_gemma import N_VOCAB, TOKENIZER, gemma_shapes
from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case, Shapes

_WINDOW, _FULL = "sliding_attention", "full_attention"


def gemma4(**sizes: Any) -> dict[str, Any]:
    """As E2B: nine layers of which the last four keep no keys and values, and are wider."""
    return config(
        "Gemma4ForCausalLM",
        "gemma4_text",
        **{
            "vocab_size": N_VOCAB,
            "vocab_size_per_layer_input": N_VOCAB,
            "hidden_size": 144,
            "hidden_size_per_layer_input": 40,
            "intermediate_size": 200,
            "num_hidden_layers": 9,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "global_head_dim": 56,
            "num_global_key_value_heads": None,
            "layer_types": [_WINDOW, _WINDOW, _FULL] * 3,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "attention_k_eq_v": False,
            "enable_moe_block": False,
            "num_experts": None,
            "top_k_experts": None,
            "moe_intermediate_size": None,
            "sliding_window": 96,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "rope_parameters": {
                _FULL: {
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 1000000.0,
                    "rope_type": "proportional",
                },
                _WINDOW: {"rope_theta": 10000.0, "rope_type": "default"},
            },
            **sizes,
        },
    )


# As 31B and 26B-A4B: no table of the layers' own, keys for values, other heads in full attention.
LARGE = {
    "hidden_size_per_layer_input": 0,
    "num_hidden_layers": 6,
    "layer_types": [_WINDOW, _WINDOW, _FULL] * 2,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "use_bidirectional_attention": "vision",
}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 72,
}


def gemma4_shapes(
    settings: dict[str, Any], *, keeps_shared: bool = True, prefix: str = "model."
) -> dict[str, tuple[int, ...]]:
    """Tensors as published, with keys and values of shared layers, or as transformers saves."""
    n_embd, n_layer = settings["hidden_size"], settings["num_hidden_layers"]
    width = settings["hidden_size_per_layer_input"]
    first_shared = n_layer - settings["num_kv_shared_layers"]
    shapes: dict[str, tuple[int, ...]] = {}
    usual = gemma_shapes(settings, head_norms=True)
    for name, shape in usual.items():
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else -1
        is_full = layer >= 0 and settings["layer_types"][layer] == _FULL
        inner = ".".join(parts[3:])
        is_kv = inner.startswith(("self_attn.k_", "self_attn.v_"))
        if is_kv and layer >= first_shared and not keeps_shared:
            continue
        if inner == "self_attn.v_proj.weight" and is_full and settings["attention_k_eq_v"]:
            continue
        shapes[name] = _resized(settings, inner, shape, is_full, layer >= first_shared)
    for layer in range(n_layer):
        at = f"model.layers.{layer}."
        shapes[f"{at}layer_scalar"] = (1,)
        if width:
            shapes[f"{at}per_layer_input_gate.weight"] = (width, n_embd)
            shapes[f"{at}per_layer_projection.weight"] = (n_embd, width)
            shapes[f"{at}post_per_layer_input_norm.weight"] = (n_embd,)
        if settings["enable_moe_block"]:
            n_expert, n_ff = settings["num_experts"], settings["moe_intermediate_size"]
            shapes[f"{at}router.proj.weight"] = (n_expert, n_embd)
            shapes[f"{at}router.scale"] = (n_embd,)
            shapes[f"{at}router.per_expert_scale"] = (n_expert,)
            shapes[f"{at}experts.gate_up_proj"] = (n_expert, 2 * n_ff, n_embd)
            shapes[f"{at}experts.down_proj"] = (n_expert, n_embd, n_ff)
            for norm in ("pre_feedforward_layernorm_2", "post_feedforward_layernorm_1"):
                shapes[f"{at}{norm}.weight"] = (n_embd,)
            shapes[f"{at}post_feedforward_layernorm_2.weight"] = (n_embd,)
    if width:
        shapes |= table_shapes(n_layer, width, n_embd, settings["vocab_size_per_layer_input"])
    return {name.replace("model.", prefix, 1): shape for name, shape in shapes.items()}


def table_shapes(n_layer: int, width: int, n_embd: int, rows: int) -> dict[str, tuple[int, ...]]:
    return {
        "model.embed_tokens_per_layer.weight": (rows, n_layer * width),
        "model.per_layer_model_projection.weight": (n_layer * width, n_embd),
        "model.per_layer_projection_norm.weight": (width,),
    }


def _resized(
    settings: dict[str, Any], inner: str, shape: tuple[int, ...], is_full: bool, is_shared: bool
) -> tuple[int, ...]:
    """The shape of a tensor where its layer has other sizes than the configuration's first."""
    n_embd, n_head = settings["hidden_size"], settings["num_attention_heads"]
    if is_full:
        size, heads = settings["global_head_dim"], settings["num_key_value_heads"]
        if settings["attention_k_eq_v"]:
            heads = settings["num_global_key_value_heads"]
        sizes = {
            "self_attn.q_proj.weight": (n_head * size, n_embd),
            "self_attn.k_proj.weight": (heads * size, n_embd),
            "self_attn.v_proj.weight": (heads * size, n_embd),
            "self_attn.o_proj.weight": (n_embd, n_head * size),
            "self_attn.q_norm.weight": (size,),
            "self_attn.k_norm.weight": (size,),
        }
        shape = sizes.get(inner, shape)
    if is_shared and settings["use_double_wide_mlp"] and inner.startswith("mlp."):
        n_ff = settings["intermediate_size"]
        shape = tuple(2 * n_ff if size == n_ff else size for size in shape)
    return shape


def gemma3n(**sizes: Any) -> dict[str, Any]:
    """As E2B, with its pattern and number of layers that keep keys and values."""
    return config(
        "Gemma3nForCausalLM",
        "gemma3n_text",
        **{
            "vocab_size": N_VOCAB,
            "vocab_size_per_layer_input": N_VOCAB - 16,
            "hidden_size": 80,
            "intermediate_size": [136] * 25,
            "num_hidden_layers": 25,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "layer_types": ([_WINDOW] * 4 + [_FULL]) * 5,
            "num_kv_shared_layers": 5,
            "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 15,
            "sliding_window": 96,
            "final_logit_softcapping": 30.0,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "tie_word_embeddings": True,
            **sizes,
        },
    )


def gemma3n_shapes(settings: dict[str, Any], *, prefix: str = "model.") -> Shapes:
    n_embd, n_layer = settings["hidden_size"], settings["num_hidden_layers"]
    shapes = gemma_shapes({**settings, "intermediate_size": 136}, head_norms=True)
    for layer in range(n_layer):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}altup.correct_output_scale": (n_embd,),
            f"{at}altup.correction_coefs.weight": (4, 4),
            f"{at}altup.modality_router.weight": (4, n_embd),
            f"{at}altup.prediction_coefs.weight": (16, 4),
            f"{at}altup.router_norm.weight": (n_embd,),
            f"{at}laurel.linear_left.weight": (64, n_embd),
            f"{at}laurel.linear_right.weight": (n_embd, 64),
            f"{at}laurel.post_laurel_norm.weight": (n_embd,),
            f"{at}per_layer_input_gate.weight": (256, n_embd),
            f"{at}per_layer_projection.weight": (n_embd, 256),
            f"{at}post_per_layer_input_norm.weight": (n_embd,),
        }
    for n in range(3):
        shapes[f"model.altup_projections.{n}.weight"] = (n_embd, n_embd)
        shapes[f"model.altup_unembed_projections.{n}.weight"] = (n_embd, n_embd)
    shapes |= table_shapes(n_layer, 256, n_embd, settings["vocab_size_per_layer_input"])
    return {name.replace("model.", prefix, 1): shape for name, shape in shapes.items()}


def wrapped(architecture: str, model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    """A multimodal configuration around a text one, as published."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": {k: v for k, v in text.items() if k not in ("architectures", "torch_dtype")},
        "vision_config": {"model_type": f"{model_type}_vision"},
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


_TOWERS: Shapes = {
    "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": (32, 32),
    "model.audio_tower.layers.0.norm_out.weight": (32,),
    "model.embed_vision.embedding_projection.weight": (144, 32),
    "model.embed_audio.embedding_projection.weight": (144, 32),
}
_UNIFIED: Shapes = {
    "model.vision_embedder.patch_dense.weight": (32, 48),
    "model.vision_embedder.pos_embedding": (8, 2, 32),
    "model.embed_vision.embedding_projection.weight": (144, 32),
    "model.embed_audio.embedding_projection.weight": (144, 32),
}


def case4(name: str, settings: dict[str, Any], shapes: Shapes, **options: Any) -> Case:
    return Case(name, settings, shapes, files={"tokenizer.json": TOKENIZER}, **options)


_E2B, _DENSE = gemma4(), gemma4(**LARGE)
_MOE = gemma4(**LARGE, **EXPERTS)
_E4B = gemma4(use_double_wide_mlp=False, num_key_value_heads=2)
_12B = {**gemma4(**LARGE), "model_type": "gemma4_unified_text"}
_REAL = gemma4(
    **{**LARGE, "num_hidden_layers": 2, "layer_types": [_WINDOW, _FULL]},
    vocab_size=262144,
    hidden_size=64,
)
_PREFIX = "model.language_model."
_3N = gemma3n()
_3N_WHOLE = gemma3n(vocab_size_per_layer_input=N_VOCAB, intermediate_size=136)

CASES = (
    Case("gemma4-vocabulary", _REAL, gemma4_shapes(_REAL), vocabulary="gemma-4"),
    case4("gemma4-e2b", _E2B, gemma4_shapes(_E2B)),
    case4("gemma4-e2b-f16", _E2B, gemma4_shapes(_E2B), dtype="F16", n_shards=3),
    case4("gemma4-saved-again", _E2B, gemma4_shapes(_E2B, keeps_shared=False), dtype="F32"),
    case4("gemma4-e4b", _E4B, gemma4_shapes(_E4B)),
    case4("gemma4-dense", _DENSE, gemma4_shapes(_DENSE)),
    case4("gemma4-moe", _MOE, gemma4_shapes(_MOE), n_shards=2),
    case4(
        "gemma4-untied",
        gemma4(**LARGE, tie_word_embeddings=False),
        {**gemma4_shapes(_DENSE), "lm_head.weight": (N_VOCAB, 144)},
    ),
    case4(
        "gemma4-multimodal",
        wrapped("Gemma4ForConditionalGeneration", "gemma4", _E2B),
        {**_TOWERS, **gemma4_shapes(_E2B, prefix=_PREFIX)},
    ),
    case4(
        "gemma4-unified",
        wrapped("Gemma4UnifiedForConditionalGeneration", "gemma4_unified", _12B),
        {**_UNIFIED, **gemma4_shapes(_12B, prefix=_PREFIX)},
    ),
    case4("gemma3n-e2b", _3N, gemma3n_shapes(_3N)),
    case4("gemma3n-f16", _3N_WHOLE, gemma3n_shapes(_3N_WHOLE), dtype="F16", n_shards=4),
    case4(
        "gemma3n-multimodal",
        wrapped("Gemma3nForConditionalGeneration", "gemma3n", _3N),
        gemma3n_shapes(_3N, prefix=_PREFIX),
    ),
)
