"""Gemma 2 and Gemma 3 checkpoints for the oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case, Shapes, decoder_shapes

N_VOCAB = 384
# Upstream's Gemma 3 asks tokenizer.json for the number of tokens, with or without a vocabulary.
TOKENIZER = json.dumps(
    {"model": {"vocab": {f"t{i}": i for i in range(N_VOCAB)}}, "added_tokens": []}
)


def gemma_shapes(
    settings: Mapping[str, Any], *, head_norms: bool = False, prefix: str = ""
) -> dict[str, tuple[int, ...]]:
    """Tensors of a tied Gemma: a Llama's, with a norm before and after both parts of a layer."""
    shapes = decoder_shapes(settings, head_norms=head_norms, prefix=prefix)
    for layer in range(settings["num_hidden_layers"]):
        for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            name = f"{prefix}model.layers.{layer}.{norm}.weight"
            shapes[name] = (settings["hidden_size"],)
    return shapes


def gemma2(**sizes: Any) -> dict[str, Any]:
    return config(
        "Gemma2ForCausalLM",
        "gemma2",
        **{
            "hidden_size": 144,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 40,
            "query_pre_attn_scalar": 40,
            "sliding_window": 96,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
            **sizes,
        },
    )


def gemma3(**sizes: Any) -> dict[str, Any]:
    return config(
        "Gemma3ForCausalLM",
        "gemma3_text",
        **{
            "hidden_size": 160,
            "num_hidden_layers": 8,  # not a multiple of the pattern's six
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 48,
            "query_pre_attn_scalar": 48,
            "sliding_window": 64,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "tie_word_embeddings": True,
            **sizes,
        },
    )


def gemma3_case(name: str, settings: dict[str, Any], shapes: Shapes, **options: Any) -> Case:
    return Case(name, settings, shapes, files={"tokenizer.json": TOKENIZER}, **options)


# As google/gemma-3-4b-it writes it: whatever equals a default is left out.
_SPARSE_TEXT = {
    "model_type": "gemma3_text",
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "sliding_window": 128,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
}
_MULTIMODAL = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": _SPARSE_TEXT,
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48},
    "torch_dtype": "bfloat16",
}
# The sizes that the defaults fill in.
_FULL_TEXT = {
    **_SPARSE_TEXT,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
}
_VISION = {
    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (32, 32),
    "vision_tower.vision_model.embeddings.patch_embedding.weight": (32, 3, 14, 14),
    "multi_modal_projector.mm_soft_emb_norm.weight": (32,),
    "multi_modal_projector.mm_input_projection_weight": (32, 64),
}


def older_multimodal() -> dict[str, tuple[int, ...]]:
    """`language_model.model.layers…`, as published."""
    shapes = gemma_shapes(_FULL_TEXT, head_norms=True, prefix="language_model.")
    return {**_VISION, **shapes}


def newer_multimodal() -> dict[str, tuple[int, ...]]:
    """`model.language_model.layers…`, as transformers saves it from 4.52 on."""
    shapes = gemma_shapes(_FULL_TEXT, head_norms=True)
    renamed = {
        name.replace("model.", "model.language_model.", 1): shape for name, shape in shapes.items()
    }
    return {**{f"model.{name}": shape for name, shape in _VISION.items()}, **renamed}


_GEMMA2 = gemma2()
# Real vocabularies, the first with rows to spare.
_GEMMA2_REAL = gemma2(vocab_size=32064, hidden_size=64, num_hidden_layers=2)
_GEMMA3_REAL = gemma3(vocab_size=32004, hidden_size=64, num_hidden_layers=2)
_GEMMA3 = gemma3()
_ROPE_5 = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
}

CASES = (
    Case("gemma2-vocabulary", _GEMMA2_REAL, gemma_shapes(_GEMMA2_REAL), vocabulary="gemma"),
    Case(
        "gemma3-vocabulary",
        _GEMMA3_REAL,
        gemma_shapes(_GEMMA3_REAL, head_norms=True),
        vocabulary="gemma",
    ),
    Case("gemma2-bf16", _GEMMA2, gemma_shapes(_GEMMA2)),
    # The norm's + 1 happens in float16 then, and only then.
    Case("gemma2-f16", _GEMMA2, gemma_shapes(_GEMMA2), dtype="F16"),
    Case("gemma2-f32", _GEMMA2, gemma_shapes(_GEMMA2), dtype="F32"),
    Case(
        "gemma2-stray-head",
        _GEMMA2,
        {**gemma_shapes(_GEMMA2), "lm_head.weight": (N_VOCAB, _GEMMA2["hidden_size"])},
        n_shards=2,
    ),
    gemma3_case("gemma3-bf16", _GEMMA3, gemma_shapes(_GEMMA3, head_norms=True)),
    gemma3_case("gemma3-f16", _GEMMA3, gemma_shapes(_GEMMA3, head_norms=True), dtype="F16"),
    gemma3_case(
        "gemma3-untied-capped",
        gemma3(tie_word_embeddings=False, final_logit_softcapping=20.0, num_hidden_layers=2),
        gemma_shapes(gemma3(tie_word_embeddings=False, num_hidden_layers=2), head_norms=True),
        dtype="F32",
    ),
    gemma3_case(
        "gemma3-all-full",
        gemma3(sliding_window_pattern=1, num_hidden_layers=2),
        gemma_shapes(gemma3(num_hidden_layers=2), head_norms=True),
    ),
    gemma3_case(
        "gemma3-rope-per-kind",
        gemma3(rope_parameters=_ROPE_5, num_hidden_layers=2),
        gemma_shapes(gemma3(num_hidden_layers=2), head_norms=True),
    ),
    gemma3_case("gemma3-multimodal", _MULTIMODAL, older_multimodal(), n_shards=2),
    gemma3_case("gemma3-multimodal-newer-names", _MULTIMODAL, newer_multimodal()),
)
