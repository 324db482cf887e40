"""Checkpoints that see images, whose language model is a Qwen3 or a Llama, for the oracle."""

from __future__ import annotations

from typing import Any

from tests.converters.families.cases_llama import config
from tests.converters.families.checkpoints import Case, Shapes, decoder_shapes

_TOWER = {"depth": 2, "hidden_size": 32, "deepstack_visual_indexes": [0, 1]}
_QWEN3 = config(
    "Qwen3VLForConditionalGeneration",
    "qwen3_vl_text",
    head_dim=32,
    rope_theta=5000000,
    rope_scaling={"mrope_interleaved": True, "mrope_section": [8, 4, 4], "rope_type": "default"},
    tie_word_embeddings=True,
)
# As transformers 4 and 5 name the rope.
_QWEN3_5 = {k: v for k, v in _QWEN3.items() if k not in ("rope_theta", "rope_scaling")}
_QWEN3_5["rope_parameters"] = {**_QWEN3["rope_scaling"], "rope_theta": 1000000}
_LLAMA = config("VLlama3ForCausalLM", "llama", rope_theta=100000.0, tie_word_embeddings=False)


def wrapped(model_type: str, architecture: str, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": text,
        "vision_config": {"model_type": model_type, **_TOWER},
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def inside(text: Shapes, part: str, *others: str) -> Shapes:
    """The language model's tensors below `model.PART.`, and small ones of other parts."""
    renamed = {name.replace("model.", f"model.{part}.", 1): text[name] for name in text}
    return {**renamed, **{f"model.{name}": (32, 16) for name in others}}


def qwen3vl(text: dict[str, Any]) -> tuple[dict[str, Any], Shapes]:
    inner = {key: value for key, value in text.items() if key != "architectures"}
    return (
        wrapped("qwen3_vl", "Qwen3VLForConditionalGeneration", inner),
        inside(
            decoder_shapes(text, head_norms=True),
            "language_model",
            "visual.blocks.0.attn.proj.weight",
            "visual.deepstack_merger_list.0.linear_fc1.weight",
        ),
    )


CASES = (
    Case("qwen3vl-bf16", *qwen3vl(_QWEN3)),
    Case("qwen3vl-rope-parameters", *qwen3vl(_QWEN3_5), dtype="F16", n_shards=2),
    Case(
        "smolvlm",
        wrapped("smolvlm", "SmolVLMForConditionalGeneration", _LLAMA),
        inside(
            decoder_shapes(_LLAMA),
            "text_model",
            "vision_model.encoder.layers.0.mlp.fc1.weight",
            "connector.modality_projection.proj.weight",
        ),
    ),
)
