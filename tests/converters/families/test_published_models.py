"""Published models at their true sizes: parameters and state, without their weights.

The configurations are the published ones as far as the conversion reads them; the numbers of
parameters were worked out from those sizes by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from boardfit.converters.families.registry import family_for
from boardfit.device_profiles.shape import ModelShape
from tests.converters.families.cases_gemma import gemma_shapes
from tests.converters.families.cases_gemma4 import EXPERTS, LARGE, gemma4, gemma4_shapes
from tests.converters.families.cases_hybrid import (
    falcon_h1,
    falcon_shapes,
    granite_hybrid,
    granite_hybrid_shapes,
    nemotron,
    nemotron_moe,
    nemotron_shapes,
)
from tests.converters.families.cases_lfm2 import lfm2_shapes
from tests.converters.families.cases_moe import qwen3moe_shapes
from tests.converters.families.cases_olmo import olmo_shapes
from tests.converters.families.cases_phi3 import phi3_shapes
from tests.converters.families.cases_qwen35 import qwen35_shapes
from tests.converters.families.checkpoints import Case, Shapes, decoder_shapes
from tests.converters.families.test_hostile_config import Shapes as ShapesOnly


@dataclass(frozen=True)
class Published:
    """`kv_values` counts key and value numbers of one token over all layers, `n_windowed` the
    layers that look back over a window, `state` the float32 values of all recurrent layers.
    """

    config: Mapping[str, Any]
    shapes: Shapes
    n_params: int
    kv_values: int
    n_windowed: int = 0
    state: int = 0
    n_params_active: int | None = None


def sizes(model_type: str, *dims: int, **others: Any) -> dict[str, Any]:
    """`dims`: vocabulary, hidden, feed-forward, layers, heads, key-value heads."""
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    return {"model_type": model_type, **dict(zip(names, dims, strict=True)), **others}


GEMMA2_2B = sizes("gemma2", 256000, 2304, 9216, 26, 8, 4, head_dim=256)
GEMMA3_270M = sizes("gemma3_text", 262144, 640, 2048, 18, 4, 1, head_dim=256, sliding_window=512)
PHI4_MINI = sizes(
    "phi3",
    *(200064, 3072, 8192, 32, 24, 8),
    max_position_embeddings=131072,
    partial_rotary_factor=0.75,
    rope_scaling={"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    sliding_window=262144,
    tie_word_embeddings=True,
)
LFM2_ATTENDS = [2, 5, 8, 10, 12, 14]
LFM2_1_2B = sizes(
    "lfm2",
    *(65536, 2048, 12288, 16, 32, 8),
    block_ff_dim=12288,
    full_attn_idxs=LFM2_ATTENDS,
    conv_L_cache=3,
)
LFM2_KINDS = ["full_attention" if i in LFM2_ATTENDS else "conv" for i in range(16)]
QWEN3_30B = sizes(
    "qwen3_moe",
    *(151936, 2048, 6144, 48, 32, 4),
    head_dim=128,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
)
# Sizes of Qwen/Qwen3.5-0.8B as NVIDIA/Model-Optimizer pins them (examples/puzzletron/configs/
# families/qwen3_5/qwen3p5_0p8b/model.yaml), the rest as Qwen/Qwen3.6-27B has it.
QWEN35_0_8B = sizes(
    "qwen3_5_text",
    *(248320, 1024, 3584, 24, 8, 2),
    head_dim=256,
    max_position_embeddings=262144,
    full_attention_interval=4,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_num_key_heads=16,
    linear_num_value_heads=16,
    tie_word_embeddings=True,
)
GRANITE_2B = sizes("granite", 49159, 2048, 8192, 40, 32, 8, tie_word_embeddings=True)
OLMO2_1B = sizes("olmo2", 100352, 2048, 8192, 16, 16, 16)
LFM2_8B_KINDS = ["full_attention" if i in (2, 6, 10, 14, 18, 21) else "conv" for i in range(24)]
LFM2_8B = sizes(
    "lfm2_moe",
    *(65536, 2048, 7168, 24, 32, 8),
    layer_types=LFM2_8B_KINDS,
    conv_L_cache=3,
    num_dense_layers=2,
    num_experts=32,
    num_experts_per_tok=4,
    moe_intermediate_size=1792,
)
GRANITE_H_350M = granite_hybrid(
    **sizes("granitemoehybrid", 100352, 768, 2048, 32, 12, 4),
    shared_intermediate_size=2048,
    layer_types=["attention" if i in (10, 13, 17, 27) else "mamba" for i in range(32)],
    mamba_n_heads=48,
    mamba_d_head=32,
    mamba_d_state=128,
)
NEMOTRON_9B = nemotron(
    "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    **sizes("nemotron_h", 131072, 4480, 15680, 56, 40, 8),
    head_dim=128,
    mamba_num_heads=128,
    mamba_head_dim=80,
    ssm_state_size=128,
    n_groups=8,
)
NEMOTRON_30B = nemotron_moe(
    "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    **sizes("nemotron_h", 131072, 2688, 1856, 52, 32, 2),
    head_dim=128,
    mamba_num_heads=64,
    mamba_head_dim=64,
    ssm_state_size=128,
    n_groups=8,
    n_routed_experts=128,
    num_experts_per_tok=6,
    moe_intermediate_size=1856,
    moe_shared_expert_intermediate_size=3712,
)
FALCON_H1_05B = falcon_h1(
    **sizes("falcon_h1", 32784, 1024, 2048, 36, 8, 2),
    head_dim=64,
    mamba_d_ssm=1536,
    mamba_n_heads=24,
    mamba_d_head=64,
    mamba_n_groups=1,
    mamba_d_state=128,
)

GEMMA4_E2B = gemma4(
    vocab_size=262144,
    vocab_size_per_layer_input=262144,
    hidden_size=1536,
    hidden_size_per_layer_input=256,
    intermediate_size=6144,
    num_hidden_layers=35,
    num_attention_heads=8,
    head_dim=256,
    global_head_dim=512,
    layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 7,
    num_kv_shared_layers=20,
    sliding_window=512,
)
GEMMA4_26B = gemma4(
    **{
        **LARGE,
        **EXPERTS,
        "vocab_size": 262144,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "head_dim": 256,
        "global_head_dim": 512,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "sliding_window": 1024,
    }
)

MODELS = {
    # Keys and values of 15 layers; those of the other 20 are in the checkpoint all the same.
    "gemma-4-e2b": Published(
        GEMMA4_E2B,
        gemma4_shapes(GEMMA4_E2B),
        n_params=4_647_450_147,
        # One row of the layers' table instead of all.
        n_params_active=4_647_450_147 - 262143 * 35 * 256,
        kv_values=12 * 2 * 256 + 3 * 2 * 512,
        n_windowed=28,
    ),
    "gemma-4-26b-a4b": Published(
        GEMMA4_26B,
        gemma4_shapes(GEMMA4_26B),
        n_params=25_233_142_046,
        # 8 of 128 experts, with their scales.
        n_params_active=25_233_142_046 - 30 * 120 * (3 * 704 * 2816 + 1),
        kv_values=25 * 2 * 8 * 256 + 5 * 2 * 2 * 512,
        n_windowed=25,
    ),
    "gemma-2-2b": Published(
        GEMMA2_2B,
        gemma_shapes({**GEMMA2_2B, "tie_word_embeddings": True}),
        n_params=2_614_341_888,
        kv_values=26 * 2 * 4 * 256,
        n_windowed=13,
    ),
    "gemma-3-270m": Published(
        GEMMA3_270M,
        gemma_shapes({**GEMMA3_270M, "tie_word_embeddings": True}, head_norms=True),
        n_params=268_098_176,
        kv_values=18 * 2 * 256,
        n_windowed=15,
    ),
    "phi-4-mini": Published(
        PHI4_MINI,
        phi3_shapes(PHI4_MINI),
        n_params=3_836_021_760 + 2 * 48,  # the rope divisors are tensors here
        kv_values=32 * 2 * 8 * 128,
    ),
    "lfm2-1.2b": Published(
        LFM2_1_2B,
        lfm2_shapes(LFM2_1_2B, 8192, kinds=LFM2_KINDS),
        n_params=1_170_340_608,
        kv_values=6 * 2 * 8 * 64,
        state=10 * 2 * 2048,
    ),
    "qwen3-30b-a3b": Published(
        QWEN3_30B,
        qwen3moe_shapes(QWEN3_30B),
        n_params=30_532_122_624,
        kv_values=48 * 2 * 4 * 128,
        # 8 of 128 experts, and one row of the embedding instead of all.
        n_params_active=30_532_122_624 - 48 * 120 * 3 * 768 * 2048 - 151935 * 2048,
    ),
    "qwen3.5-0.8b": Published(
        QWEN35_0_8B,
        qwen35_shapes(QWEN35_0_8B),
        n_params=752_393_024,
        kv_values=6 * 2 * 2 * 256,
        state=18 * (3 * 3 * 16 * 128 + 16 * 128 * 128),
    ),
    "granite-3.3-2b": Published(
        GRANITE_2B,
        decoder_shapes(GRANITE_2B),
        n_params=2_533_539_840,
        kv_values=40 * 2 * 8 * 64,
    ),
    "lfm2-8b-a1b": Published(
        LFM2_8B,
        lfm2_shapes(LFM2_8B, 7168, kinds=LFM2_8B_KINDS, n_dense=2),
        n_params=8_339_930_560,
        n_params_active=8_339_930_560 - 22 * 28 * 3 * 1792 * 2048,
        kv_values=6 * 2 * 8 * 64,
        state=18 * 2 * 2048,
    ),
    "granite-4.0-h-350m": Published(
        GRANITE_H_350M,
        granite_hybrid_shapes(GRANITE_H_350M),
        n_params=340_332_224,
        kv_values=4 * 2 * 4 * 64,
        state=28 * (3 * (1536 + 2 * 128) + 128 * 1536),
    ),
    "nemotron-nano-9b-v2": Published(
        NEMOTRON_9B,
        nemotron_shapes(NEMOTRON_9B),
        n_params=8_888_227_328,
        n_params_active=8_888_227_328 - 131071 * 4480,
        kv_values=4 * 2 * 8 * 128,
        state=27 * (3 * (10240 + 2 * 8 * 128) + 128 * 10240),
    ),
    "nemotron-3-nano-30b-a3b": Published(
        NEMOTRON_30B,
        nemotron_shapes(NEMOTRON_30B),
        n_params=31_577_940_288,
        n_params_active=31_577_940_288 - 23 * 122 * 2 * 1856 * 2688 - 131071 * 2688,
        kv_values=6 * 2 * 2 * 128,
        state=23 * (3 * (4096 + 2 * 8 * 128) + 128 * 4096),
    ),
    "falcon-h1-0.5b": Published(
        FALCON_H1_05B,
        falcon_shapes(FALCON_H1_05B),
        n_params=521_411_104,
        n_params_active=521_411_104 - 32783 * 1024,
        kv_values=36 * 2 * 2 * 64,
        state=36 * (3 * (1536 + 2 * 128) + 128 * 1536),
    ),
    "olmo-2-1b": Published(
        OLMO2_1B,
        olmo_shapes(OLMO2_1B),
        n_params=1_484_916_736,
        n_params_active=1_484_916_736 - 100351 * 2048,  # untied: one row of the embedding
        kv_values=16 * 2 * 16 * 128,
    ),
}


def shape_of(model: Published) -> ModelShape:
    case = Case("published", model.config, model.shapes)
    return family_for(model.config)(ShapesOnly(case, model.config)).shape()


@pytest.mark.parametrize("name", MODELS)
def test_shape(name: str) -> None:
    model = MODELS[name]
    shape = shape_of(model)
    layers = shape.layers
    assert shape.n_params == model.n_params
    assert shape.n_params_active == (
        model.n_params_active or pytest.approx(model.n_params, rel=0.2)
    )
    cached = [layer for layer in layers if layer.has_cache]
    assert sum(layer.n_head_kv * (layer.head_dim_k + layer.head_dim_v) for layer in cached) == (
        model.kv_values
    )
    assert sum(layer.window is not None for layer in layers) == model.n_windowed
    assert sum(layer.state_values for layer in layers) == model.state
