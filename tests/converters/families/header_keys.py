"""Keys of a GGUF header of any architecture, with sizes drawn at random, after get_gguf_ctx in
upstream's tests/test-llama-archs.cpp.
"""

from __future__ import annotations

import random
from typing import Any

#: Architectures in which layers without KV heads keep a state or nothing.
HYBRIDS = (
    *("bailingmoe3", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe"),
    *("nemotron_h", "nemotron_h_moe", "plamo2"),
)
_MLA = ("bailingmoe3", "deepseek2", "kimi-k3", "kimi-linear", "mistral4")
_PATTERNS = (
    *("gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35", "cohere2moe"),
    "muse-glimmer",
)
_LAYERS = {"exaone4": 64, "gemma4": 9, "hrm_text": 6}
_DELTA = ("qwen35", "qwen35moe", "qwen3next")
_DENSE = ("bailingmoe3", "kimi-linear", "kimi-k3", "falcon-h1", "granitehybrid")
#: Architectures that the engine can run only with experts.
_EXPERTS = frozenset((
    "llama4", "cohere2moe", "grok", "qwen2moe", "qwen3moe", "qwen3next", "qwen3vlmoe",
    "qwen35moe", "phimoe", "dbrx", "olmoe", "arctic", "deepseek", "deepseek2", "deepseek2-ocr",
    "glm4moe", "exaone-moe", "bailingmoe", "bailingmoe2", "bailingmoe3", "dots1", "afmoe",
    "ernie4_5", "ernie4_5-moe", "hunyuan-moe", "hy_v3", "gpt-oss", "lfm2moe", "smallthinker",
    "grovemoe", "minimax-01", "minimax-m2", "paddleocr", "mimo2", "kimi-linear", "kimi-k3",
    "step35", "mistral4", "mellum", "laguna", "maple", "nemotron_h_moe", "llada-moe", "rnd1",
    "nomic-bert-moe",
))  # fmt: skip


def make_keys(arch: str, draw: random.Random) -> dict[str, Any]:
    """Keys of a header with sizes drawn by `draw`, without the architecture's prefix."""
    n_layer = draw.randint(5, 9)
    if arch == "gemma3n":
        n_layer = draw.randint(22, 26)
    elif arch in _LAYERS:
        n_layer = _LAYERS[arch]
    head, n_head, n_kv = 64 * draw.randint(1, 2), 4, draw.choice((1, 2, 4))
    if arch in ("dots1", "minicpm3", "olmoe"):
        n_kv = n_head
    elif arch in _MLA:
        head, n_head, n_kv = 128, 1, 1
    n_embd, n_ff = head * n_head, 384
    keys: dict[str, Any] = {
        "vocab_size": 128,
        "context_length": 65536,
        "embedding_length": n_embd,
        "block_count": n_layer,
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_kv,
        "leading_dense_block_count": 1,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
        "time_mix_extra_dim": 64,
        "time_decay_extra_dim": 128,
        "full_attention_interval": draw.randint(2, 4),
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 1.0,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.q_lora_rank": 512,
        "attention.kv_lora_rank": 512,
        "attention.sliding_window": 256 * draw.randint(1, 4),
        "rope.dimension_sections": [head // 4] * 4,
        "rope.freq_base_swa": 10000.0,
        "xielu.alpha_n": 1.0,
        "xielu.alpha_p": 1.0,
        "xielu.beta": 1.0,
        "xielu.eps": 1e-7,
        "ssm.inner_size": 256 if arch in _DELTA else 2 * n_embd,
        "ssm.conv_kernel": draw.randint(3, 5),
        "ssm.state_size": 128,
        "ssm.time_step_rank": 2 if arch in _DELTA else n_head,
        "ssm.group_count": 0 if arch == "plamo2" else 2,
        "kda.head_dim": 128,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0,
        "wkv.head_size": 64,
        "token_shift_count": 1 if arch in ("rwkv6qwen2", "arwkv7") else 2,
        "attention.decay_lora_rank": 32,
        "attention.iclr_lora_rank": 32,
        "attention.value_residual_mix_lora_rank": 32,
        "attention.gate_lora_rank": 32,
        "shortconv.l_cache": draw.randint(3, 5),
        "residual_scale": 3.5,
        "attn_res.block_size": 12,
        "activation.situ_beta": 4.0,
        "activation.situ_linear_beta": 25.0,
        "embedding_length_per_layer_input": 128,
        "hrm.layers_per_stack": 1,
        "hrm.h_cycles": 2,
        "hrm.l_cycles": 2,
        "swiglu_clamp_exp": 7.0,
        "tokenizer.ggml.model": "no_vocab",
        "tokenizer.ggml.token_type_count": 2,
    }
    if arch in _EXPERTS or (arch == "lfm2moe"):
        keys |= {
            "expert_count": 2,
            "expert_used_count": 2,
            "expert_feed_forward_length": n_ff,
            "expert_shared_feed_forward_length": n_ff // 2,
            "expert_latent_length": n_ff,
            "interleave_moe_layer_step": 2,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_group_scale": 1.0,
            "experts_per_group": 1,
        }
    if arch in HYBRIDS:
        without = [i % 3 == 1 for i in range(n_layer)]
        keys["attention.head_count_kv"] = [0 if none else n_kv for none in without]
        if arch in ("jamba", "plamo2", "kimi-linear", "kimi-k3", "bailingmoe3"):
            keys["attention.head_count"] = [0 if none else n_head for none in without]
        if arch.startswith("nemotron_h"):
            keys["attention.head_count"] = [0 if none else n_head for none in without]
            keys["feed_forward_length"] = [n_ff if i % 3 == 2 else 0 for i in range(n_layer)]
            kv = keys["attention.head_count_kv"]
            keys["attention.head_count_kv"] = [0 if i % 3 == 2 else n for i, n in enumerate(kv)]
    if arch in _MLA:
        keys |= {
            "attention.key_length": 576,
            "attention.value_length": 512,
            "rope.dimension_count": 64,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
        }
    elif draw.random() < 0.5 and arch in ("qwen35", "gemma2", "gemma3", "llama", "granitehybrid"):
        keys |= {"attention.key_length": 128, "attention.value_length": 128}
    if arch == "plm":
        keys |= {
            "attention.head_count_kv": n_head,
            "attention.key_length": 192,
            "attention.value_length": 128,
            "rope.dimension_count": 64,
        }
    if arch == "deepseek2-ocr":
        keys["attention.head_count_kv"] = n_head
    if arch == "rwkv6":
        keys["attention.head_count"] = keys["attention.head_count_kv"] = 0
    if arch in _PATTERNS:
        pattern = [int(i % 3 != 2) for i in range(n_layer)]
        keys["attention.sliding_window_pattern"] = pattern
    if arch == "gemma4":
        keys |= {
            "attention.shared_kv_layers": draw.choice((0, 3)),
            "attention.key_length": 128,
            "attention.value_length": 128,
            "attention.key_length_swa": 64,
            "attention.value_length_swa": 64,
        }
    if arch in ("bailingmoe3", "kimi-k3"):
        keys["swiglu_clamp_exp"] = keys["swiglu_clamp_shexp"] = [4.0] * n_layer
        keys["rope.dimension_sections"] = [8, 12, 12, 0]
    return keys
