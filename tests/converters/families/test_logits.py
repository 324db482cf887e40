"""The engine, given our GGUF, computes what transformers computes.

Upstream's converter is the oracle for bytes; a permutation that both of us had wrong would only
show here. Every family gets a random model with awkward sizes, made by transformers; greedy tokens
must agree and logits be close.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.families.registry import family_for
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from tests.converters.families.cases_hybrid import MULTIPLIERS
from tests.converters.families.engine_logits import engine_logits, write_without_vocabulary

pytestmark = [pytest.mark.slow, pytest.mark.oracle, pytest.mark.engine]

N_VOCAB = 96
# One sequence for all, longer than every window below.
TOKENS = [int(token) for token in np.random.default_rng(7).integers(0, N_VOCAB, 24)]


@dataclass(frozen=True)
class Model:
    """A configuration for transformers. `tolerance` bounds the largest error in standard deviations
    of the logits. Scores without a scale (Gemma) and sparse activations magnify rounding.
    """

    config: Mapping[str, Any]
    tolerance: float = 1e-4


def sizes(model_type: str, **others: Any) -> dict[str, Any]:
    """A small decoder with grouped queries: 6 heads of 20 on 2 key-value heads."""
    return {
        "model_type": model_type,
        "vocab_size": N_VOCAB,
        "hidden_size": 120,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **others,
    }


def longrope(original: int, **others: Any) -> dict[str, Any]:
    """Phi-3 with a stretched context and four fifths of each head rotated."""
    pairs = int(20 * 0.8) // 2
    return sizes(
        "phi3",
        partial_rotary_factor=0.8,
        original_max_position_embeddings=original,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0 + 0.05 * i for i in range(pairs)],
            "long_factor": [1.5 + 0.5 * i for i in range(pairs)],
        },
        **others,
    )


GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 8}
_WINDOW, _FULL = "sliding_attention", "full_attention"
GEMMA4 = {
    "head_dim": 24,
    "global_head_dim": 32,
    "sliding_window": 8,
    "layer_types": [_WINDOW, _FULL, _WINDOW, _FULL, _WINDOW, _WINDOW, _FULL],
    "vocab_size_per_layer_input": N_VOCAB,
    "hidden_size_per_layer_input": 16,
    "use_double_wide_mlp": True,
}
GEMMA4_LARGE = {
    "layer_types": [_WINDOW, _FULL, _WINDOW, _FULL],
    "hidden_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 3,
    "use_bidirectional_attention": "vision",
    "final_logit_softcapping": 30.0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GPT_OSS = {"head_dim": 32, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 40}
# 6 value heads on 2 key heads, and attention whose heads rotate a quarter.
DELTA_NET = {
    "num_hidden_layers": 5,
    "head_dim": 32,
    "layer_types": [
        *["linear_attention", "linear_attention", "full_attention"],
        *["linear_attention", "full_attention"],
    ],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.25,
    },
}

# Several chunks of transformers' in one sequence.
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 30,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 8,
}
GRANITE_HYBRID = sizes(
    "granitemoehybrid",
    num_hidden_layers=4,
    layer_types=["mamba", "attention", "mamba", "mamba"],
    num_local_experts=0,
    num_experts_per_tok=0,
    shared_intermediate_size=112,
    position_embedding_type="nope",
    attention_multiplier=0.3,
    embedding_multiplier=3.0,
    residual_multiplier=0.4,
    logits_scaling=2.0,
    tie_word_embeddings=True,
    **MAMBA,
)
NEMOTRON = {
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 24,
    "ssm_state_size": 16,
    "n_groups": 2,
    # transformers 5.12 carries states wrongly from chunk to chunk where it has no CUDA kernels
    # (modeling_nemotron_h.py sums over the wrong axis), so all tokens are one chunk. Nor do the
    # kernels have this least time step.
    "chunk_size": 32,
    "time_step_min": 1e-30,
}
NEMOTRON_EXPERTS = {
    **NEMOTRON,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 56,
    "routed_scaling_factor": 1.5,
    "layers_block_type": ["mamba", "moe", "attention", "moe"],
}
FALCON = sizes("falcon_h1", head_dim=24, mamba_d_ssm=240, mamba_n_groups=2, **MAMBA, **MULTIPLIERS)

MODELS = {
    "llama": Model(sizes("llama")),
    "llama-rope": Model(
        sizes(
            "llama",
            head_dim=32,
            attention_bias=True,
            rope_scaling=LLAMA3_ROPE,
        )
    ),
    "mistral": Model(sizes("mistral", head_dim=24, sliding_window=None)),
    "qwen2": Model(sizes("qwen2", tie_word_embeddings=True)),
    "qwen3": Model(sizes("qwen3", head_dim=32)),
    "smollm3": Model(sizes("smollm3", num_hidden_layers=5)),
    "gemma2": Model(sizes("gemma2", num_hidden_layers=5, **GEMMA), tolerance=5e-3),
    "gemma2-rope": Model(sizes("gemma2", rope_theta=50000.0, **GEMMA), tolerance=5e-3),
    "gemma2-pattern": Model(
        sizes(
            "gemma2",
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            **GEMMA,
        ),
        tolerance=5e-3,
    ),
    "gemma3": Model(sizes("gemma3_text", num_hidden_layers=8, **GEMMA), tolerance=5e-3),
    "gemma3-scaled": Model(
        sizes(
            "gemma3_text",
            num_hidden_layers=4,
            sliding_window_pattern=3,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            **GEMMA,
        ),
        tolerance=5e-3,
    ),
    "gemma3n": Model(
        sizes(
            "gemma3n_text",
            num_hidden_layers=25,
            num_kv_shared_layers=5,
            vocab_size_per_layer_input=N_VOCAB,
            head_dim=24,
            sliding_window=8,
        ),
        tolerance=3e-2,
    ),
    # As E2B: layers without keys and values, wider than the others, and two head sizes.
    "gemma4": Model(
        sizes("gemma4_text", num_hidden_layers=7, num_kv_shared_layers=3, **GEMMA4),
        tolerance=5e-3,
    ),
    # As 31B: keys for values, no embeddings of the layers' own.
    "gemma4-dense": Model(
        sizes("gemma4_text", num_hidden_layers=4, **{**GEMMA4, **GEMMA4_LARGE}), tolerance=5e-3
    ),
    "gemma4-moe": Model(
        sizes(
            "gemma4_text",
            num_hidden_layers=4,
            enable_moe_block=True,
            num_experts=6,
            top_k_experts=2,
            moe_intermediate_size=40,
            **{**GEMMA4, **GEMMA4_LARGE},
        ),
        tolerance=5e-3,
    ),
    "gemma4-12b": Model(
        sizes("gemma4_unified_text", num_hidden_layers=4, **{**GEMMA4, **GEMMA4_LARGE}),
        tolerance=5e-3,
    ),
    "phi3": Model(sizes("phi3", partial_rotary_factor=0.8)),
    # The engine's context is a multiple of 256; it takes the long divisors beyond the original one.
    "phi3-short": Model(longrope(256)),
    "phi3-long": Model(longrope(16, tie_word_embeddings=True)),
    "lfm2": Model(
        sizes(
            "lfm2",
            num_hidden_layers=5,
            layer_types=["conv", "conv", "full_attention", "conv", "full_attention"],
            conv_L_cache=4,
            block_multiple_of=32,
            block_auto_adjust_ff_dim=True,
            block_ffn_dim_multiplier=1.3,
        )
    ),
    "lfm2moe": Model(
        sizes(
            "lfm2_moe",
            num_hidden_layers=4,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
            num_dense_layers=1,
            num_experts=6,
            **EXPERTS,
        )
    ),
    "qwen3moe": Model(
        sizes("qwen3_moe", head_dim=32, num_experts=6, norm_topk_prob=True, **EXPERTS)
    ),
    "qwen35": Model(sizes("qwen3_5_text", **DELTA_NET)),
    "qwen35-even": Model(
        sizes("qwen3_5_text", **{**DELTA_NET, "linear_num_key_heads": 6}, tie_word_embeddings=True)
    ),
    "qwen35moe": Model(
        sizes(
            "qwen3_5_moe_text",
            **DELTA_NET,
            **EXPERTS,
            num_experts=6,
            shared_expert_intermediate_size=56,
        )
    ),
    "qwen3vl": Model(
        {
            "model_type": "qwen3_vl",
            "text_config": sizes(
                "qwen3_vl_text",
                head_dim=32,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [6, 5, 5],
                },
            ),
            "vision_config": {
                **{"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2},
                **{"out_hidden_size": 120, "deepstack_visual_indexes": [0]},
            },
        }
    ),
    "smolvlm": Model(
        {
            "model_type": "smolvlm",
            "text_config": sizes("llama", head_dim=32),
            "vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
        }
    ),
    "granite": Model(
        sizes(
            "granite",
            attention_multiplier=0.3,
            embedding_multiplier=3.0,
            residual_multiplier=0.4,
            logits_scaling=2.0,
        )
    ),
    # Upstream's converter refuses this one: it has no name for Granite's rope divisors.
    "granite-rope": Model(sizes("granite", attention_multiplier=0.3, rope_scaling=LLAMA3_ROPE)),
    "granitemoe": Model(
        sizes("granitemoe", num_local_experts=6, num_experts_per_tok=2, attention_multiplier=0.3)
    ),
    "granitemoeshared": Model(
        sizes(
            "granitemoeshared",
            num_local_experts=6,
            num_experts_per_tok=2,
            shared_intermediate_size=56,
            attention_multiplier=0.3,
        )
    ),
    "granite4": Model(
        sizes(
            "granitemoehybrid",
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=112,
            position_embedding_type="rope",
            layer_types=["attention"] * 3,
            mamba_n_heads=8,
            mamba_d_head=30,
            attention_multiplier=0.3,
        )
    ),
    "granite4-moe": Model(
        {
            **GRANITE_HYBRID,
            "layer_types": ["attention"] * 4,
            "position_embedding_type": "rope",
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
        }
    ),
    "granite-hybrid": Model(GRANITE_HYBRID),
    "granite-hybrid-moe": Model(
        {**GRANITE_HYBRID, "num_local_experts": 6, "num_experts_per_tok": 2}
    ),
    "nemotron-h": Model(
        sizes("nemotron_h", layers_block_type=["mamba", "mlp", "attention", "mamba"], **NEMOTRON)
    ),
    "nemotron-h-moe": Model(sizes("nemotron_h", n_group=2, topk_group=1, **NEMOTRON_EXPERTS)),
    "nemotron-h-latent": Model(
        sizes("nemotron_h", moe_latent_size=48, norm_topk_prob=False, **NEMOTRON_EXPERTS)
    ),
    "falcon-h1": Model(FALCON),
    "falcon-h1-norm": Model({**FALCON, "mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    "falcon-h1-tied": Model({**FALCON, "tie_word_embeddings": True}),
    "gpt-oss": Model(
        sizes("gpt_oss", rope_parameters={"rope_type": "default", "rope_theta": 1e4}, **GPT_OSS)
    ),
    # The engine rounds the bounds of yarn's ramp, whatever `truncate` states.
    "gpt-oss-yarn": Model(
        sizes(
            "gpt_oss",
            num_hidden_layers=4,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 8.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": True,
                "original_max_position_embeddings": 128,
            },
            layer_types=["full_attention", "sliding_attention"] * 2,
            **GPT_OSS,
        )
    ),
    "exaone4": Model(sizes("exaone4", sliding_window=None, layer_types=["full_attention"] * 3)),
    "exaone4-rope": Model(
        sizes(
            "exaone4",
            sliding_window=None,
            layer_types=["full_attention"] * 3,
            rope_scaling=LLAMA3_ROPE,
            tie_word_embeddings=True,
        )
    ),
    # The engine has windows with this many layers only. Depth adds up rounding.
    "exaone4-window": Model(
        sizes("exaone4", num_hidden_layers=64, sliding_window=8, sliding_window_pattern=4),
        tolerance=1e-3,
    ),
    "hunyuan": Model(sizes("hunyuan_v1_dense", head_dim=32)),
    "hunyuan-stretched": Model(
        {
            **sizes(
                "hunyuan_v1_dense",
                head_dim=32,
                rope_scaling={"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
                tie_word_embeddings=True,
            ),
            "max_position_embeddings": 32768,
        }
    ),
    "ernie4_5": Model(sizes("ernie4_5", head_dim=32)),
    "ernie4_5-untied": Model(sizes("ernie4_5", head_dim=20, tie_word_embeddings=False)),
    "olmo2": Model(sizes("olmo2")),
    "olmo3": Model(sizes("olmo3", num_hidden_layers=5, sliding_window=8)),
}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory, reference_python: Path) -> Path:
    """A folder with a checkpoint and `logits.npy` per model."""
    folder = tmp_path_factory.mktemp("references")
    jobs = [
        {"config": model.config, "directory": str(folder / name), "tokens": TOKENS}
        for name, model in MODELS.items()
    ]
    driver = Path(__file__).with_name("reference_driver.py")
    done = subprocess.run(
        [reference_python, driver],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_engine_agrees_with_transformers(name: str, references: Path, tmp_path: Path) -> None:
    model, directory = MODELS[name], references / name
    expected = np.load(directory / "logits.npy")
    config = json.loads((directory / "config.json").read_text())
    checkpoint = SafetensorsCheckpoint(directory, config)
    path = tmp_path / "model.gguf"
    write_without_vocabulary(path, family_for(config)(checkpoint))
    # At once, and with the last third token by token from what the first part left behind.
    for n_prefill in (None, 2 * len(TOKENS) // 3):
        got = engine_logits(path, TOKENS, n_ctx=256, n_prefill=n_prefill)
        assert np.isfinite(got).all()
        assert (got.argmax(axis=1) == expected.argmax(axis=1)).all()
        assert np.abs(got - expected).max() <= model.tolerance * expected.std()
