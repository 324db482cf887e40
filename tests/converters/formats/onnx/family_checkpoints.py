"""Runs in the ONNX builder's environment: small random checkpoints of every family, true in
architecture, and transformers' logits for one prompt.

python family_checkpoints.py FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = [1 + (i * 37) % 250 for i in range(70)]  # below the tiny tokenizer's size
_SIZES = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.05,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 128,
    "short_factor": [1.0 + 0.01 * i for i in range(8)],
    "long_factor": [1.1 + 0.7 * i for i in range(8)],
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
_GLOBAL_STRETCHED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

#: Name -> (configuration class, model class, settings beyond the common ones).
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": _LLAMA3}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        {
            "head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32,
            "rope_parameters": _GLOBAL_STRETCHED,
            "layer_types": [*["sliding_attention"] * 3, "full_attention"],
        },
    ),
    "phi3": (
        "Phi3Config", "Phi3ForCausalLM",
        {"original_max_position_embeddings": 128, "rope_parameters": _LONGROPE},
    ),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {"tie_word_embeddings": True}),
    "granite": (
        "GraniteConfig", "GraniteForCausalLM",
        {
            "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625, "tie_word_embeddings": True,
        },
    ),
    "lfm2": (
        "Lfm2Config", "Lfm2ForCausalLM",
        {
            "block_auto_adjust_ff_dim": False, "conv_L_cache": 3, "tie_word_embeddings": True,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
        },
    ),
}  # fmt: skip


def main() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    for name, (config, model, settings) in FAMILIES.items():
        torch.manual_seed(0)
        made = getattr(transformers, model)(
            getattr(transformers, config)(**{**_SIZES, **settings})
        ).eval()
        made.save_pretrained(home / name)
        with torch.no_grad():
            logits = made(torch.tensor([PROMPT])).logits[0].numpy()
        np.save(home / f"{name}.npy", logits)
    (home / "complete").write_text(json.dumps(PROMPT))


if __name__ == "__main__":
    main()
