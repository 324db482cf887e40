"""EXAONE 4, ERNIE 4.5 and Hunyuan checkpoints for the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.converters.families.cases_llama import LLAMA3_ROPE, config
from tests.converters.families.checkpoints import Case, decoder_shapes


def exaone4(**sizes: Any) -> dict[str, Any]:
    """One without windows, as the published 1.2B."""
    settings = config(
        "Exaone4ForCausalLM",
        "exaone4",
        **{
            "num_attention_heads": 10,
            "num_key_value_heads": 5,
            "head_dim": 32,
            "rope_theta": 1e6,
            "rope_scaling": {**LLAMA3_ROPE, "factor": 16.0},
            "sliding_window": None,
            **sizes,
        },
    )
    return {"layer_types": ["full_attention"] * settings["num_hidden_layers"], **settings}


def exaone4_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = decoder_shapes(settings, head_norms=True)
    for i in range(settings["num_hidden_layers"]):
        n_embd = shapes.pop(f"model.layers.{i}.input_layernorm.weight")
        shapes[f"model.layers.{i}.post_feedforward_layernorm.weight"] = n_embd
    return shapes


def ernie4_5(**sizes: Any) -> dict[str, Any]:
    return config(
        "Ernie4_5ForCausalLM",
        "ernie4_5",
        **{
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "rope_theta": 500000.0,
            "use_bias": False,
            "tie_word_embeddings": True,
            **sizes,
        },
    )


def hunyuan(**sizes: Any) -> dict[str, Any]:
    """As published: a context stretched by a larger base."""
    return config(
        "HunYuanDenseV1ForCausalLM",
        "hunyuan_v1_dense",
        **{
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 32768,
            "rope_theta": 10000.0,
            "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
            "tie_word_embeddings": True,
            **sizes,
        },
    )


def hunyuan_shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = decoder_shapes(settings, head_norms=True)
    for short, full in (("q_norm", "query_layernorm"), ("k_norm", "key_layernorm")):
        shapes = {name.replace(short, full): shape for name, shape in shapes.items()}
    return shapes


_DEEP = exaone4(
    num_hidden_layers=64,
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=96,
    sliding_window=32,
    sliding_window_pattern="LLLG",
    layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 16,
)
_EXAONE_REAL = exaone4(
    vocab_size=50304, hidden_size=80, num_attention_heads=4, num_key_value_heads=2, head_dim=20
)
_ERNIE_REAL = ernie4_5(vocab_size=32000, hidden_size=96)
_PLAIN_HUNYUAN = hunyuan(rope_scaling=None, num_experts=1, tie_word_embeddings=False)
_HUNYUAN_REAL = hunyuan(vocab_size=128256, hidden_size=64)

CASES = (
    Case(
        "hunyuan-vocabulary",
        _HUNYUAN_REAL,
        hunyuan_shapes(_HUNYUAN_REAL),
        vocabulary="hunyuan",
        files={"generation_config.json": '{"eos_token_id": [128005, 128009]}'},
    ),
    Case("exaone4-vocabulary", _EXAONE_REAL, exaone4_shapes(_EXAONE_REAL), vocabulary="exaone4"),
    Case("exaone4-bf16", exaone4(), exaone4_shapes(exaone4())),
    Case("exaone4-windows", _DEEP, exaone4_shapes(_DEEP), dtype="F16", n_shards=3),
    Case("hunyuan-stretched", hunyuan(), hunyuan_shapes(hunyuan())),
    Case("hunyuan-plain", _PLAIN_HUNYUAN, hunyuan_shapes(_PLAIN_HUNYUAN), dtype="F16"),
    Case("ernie4_5-vocabulary", _ERNIE_REAL, decoder_shapes(_ERNIE_REAL), vocabulary="ernie4_5"),
    Case("ernie4_5-tied", ernie4_5(), decoder_shapes(ernie4_5()), n_shards=2),
    Case(
        "ernie4_5-prefixed",
        ernie4_5(),
        {name.replace("model.", "ernie."): s for name, s in decoder_shapes(ernie4_5()).items()},
        dtype="F16",
    ),
)
