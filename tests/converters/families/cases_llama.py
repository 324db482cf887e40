"""Llama, Mistral, Qwen2, Qwen3 and SmolLM3 checkpoints for the oracle, in true shapes."""

from __future__ import annotations

from typing import Any

from tests.converters.families.checkpoints import Case, decoder_shapes

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CARD = """---
license: other
license_name: example
license_link: https://example.org/license
language:
- en
- no
tags: [edge, test]
base_model: someone/Base-Model-2B
datasets:
- someone/data-v1.2
---
# A card
"""


def config(architecture: str, model_type: str, **sizes: Any) -> dict[str, Any]:
    """A configuration with what all of these families need, over which `sizes` are laid."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": 384,
        "hidden_size": 320,
        "intermediate_size": 608,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        **sizes,
    }


def llama(**sizes: Any) -> dict[str, Any]:
    return config("LlamaForCausalLM", "llama", **sizes)


def case(name: str, settings: dict[str, Any], **options: Any) -> Case:
    shape_options = {
        key: options.pop(key)
        for key in ("attention_bias", "mlp_bias", "head_norms", "prefix")
        if key in options
    }
    return Case(name, settings, decoder_shapes(settings, **shape_options), **options)


_GQA = llama(hidden_size=576, num_attention_heads=9, num_key_value_heads=3)  # SmolLM2-135M
_TINY = llama(num_attention_heads=4, num_key_value_heads=2, head_dim=72, rope_theta=1e6)
_SHARDED = llama(num_hidden_layers=12, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
_LLAMA3 = llama(
    hidden_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rope_theta=500000.0,
    rope_scaling=LLAMA3_ROPE,
    tie_word_embeddings=True,
)
_BIASED = llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1)
_LINEAR = llama(rope_scaling={"type": "linear", "factor": 4.0})
_QWEN2 = config(
    "Qwen2ForCausalLM",
    "qwen2",
    hidden_size=896,  # Qwen2.5-0.5B
    intermediate_size=1216,
    num_attention_heads=14,
    num_key_value_heads=2,
    rope_theta=1e6,
    tie_word_embeddings=True,
    use_sliding_window=False,
    sliding_window=32768,
    max_window_layers=21,
)
_QWEN3 = config(
    "Qwen3ForCausalLM",
    "qwen3",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    rope_theta=1e6,
)
_SMOLLM3 = config(
    "SmolLM3ForCausalLM",
    "smollm3",
    num_hidden_layers=5,
    hidden_size=192,
    num_attention_heads=4,
    num_key_value_heads=1,
    rope_theta=5e6,
    no_rope_layers=[1, 1, 1, 0, 1],
    tie_word_embeddings=True,
    pad_token_id=1,
    bos_token_id=None,
    eos_token_id=2,
)
_MISTRAL = config(
    "MistralForCausalLM",
    "mistral",
    num_attention_heads=10,
    num_key_value_heads=2,
    sliding_window=1024,
)
_NEMO = config(
    "MistralForCausalLM",
    "mistral",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=96,
    sliding_window=None,
)
_MINISTRAL3 = config(
    "Ministral3ForCausalLM",
    "ministral3",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rope_parameters={
        "type": "yarn",
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
)
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

_SMALL = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
_LLAMA3_REAL = llama(**_SMALL, vocab_size=128256, rope_theta=500000.0, rope_scaling=LLAMA3_ROPE)
_TINYLLAMA_REAL = llama(**{**_SMALL, "tie_word_embeddings": False}, vocab_size=32000)
_MISTRAL_REAL = config("MistralForCausalLM", "mistral", **_SMALL, vocab_size=32768)
_QWEN2_REAL = config("Qwen2ForCausalLM", "qwen2", **_SMALL, vocab_size=151936, rope_theta=1e6)
_QWEN3_REAL = config(
    "Qwen3ForCausalLM", "qwen3", **_SMALL, vocab_size=151936, rope_theta=1e6, head_dim=48
)
_SMOLLM3_REAL = config("SmolLM3ForCausalLM", "smollm3", **_SMALL, vocab_size=128256)

CASES = (
    case("llama-3-vocabulary", _LLAMA3_REAL, vocabulary="llama-bpe"),
    case("minicpm5-vocabulary", _LLAMA3_REAL, vocabulary="minicpm5"),
    case("tinyllama-vocabulary", _TINYLLAMA_REAL, vocabulary="llama-spm"),
    case("mistral-padded-vocabulary", _MISTRAL_REAL, vocabulary="llama-spm"),
    case("qwen2-vocabulary", _QWEN2_REAL, vocabulary="qwen2", attention_bias="qkv"),
    case("qwen3-vocabulary", _QWEN3_REAL, vocabulary="qwen2", head_norms=True),
    case("smollm3-vocabulary", _SMOLLM3_REAL, vocabulary="smollm3"),
    case("llama-2-style", llama(), dtype="F16"),
    case("Smol-LM2-GQA-135M-Instruct-v1.5", _GQA, dtype="BF16", files={"README.md": CARD}),
    case("llama-wide-heads-f32", _TINY, dtype="F32"),
    case("llama-sharded-12-layers", _SHARDED, n_shards=3),
    case("llama-3.2-tied", _LLAMA3),
    case(
        "llama-biased",
        _BIASED,
        attention_bias="qkvo",
        mlp_bias=True,
        files={
            "generation_config.json": '{"temperature": 0.6, "top_p": 0.9, "top_k": 40, '
            '"repetition_penalty": 1.05, "do_sample": true}'
        },
    ),
    case("llama-linear-rope", _LINEAR),
    # transformers ignores such a head, upstream writes it: what a file holds is what is converted.
    Case(
        "llama-tied-but-stored", {**llama(), "tie_word_embeddings": True}, decoder_shapes(llama())
    ),
    case("qwen2.5-0.5b-style", _QWEN2, attention_bias="qkv"),
    case("qwen2-yarn", {**_QWEN2, "rope_scaling": _YARN}, attention_bias="qkv"),
    case("qwen3-untied", _QWEN3, head_norms=True),
    case("qwen3-tied", {**_QWEN3, "tie_word_embeddings": True}, head_norms=True),
    case("smollm3", _SMOLLM3),
    case("mistral-sliding", _MISTRAL),
    case("mistral-nemo", _NEMO),
    case("ministral3", _MINISTRAL3),
)
