"""Small checkpoints of architectures that no family of ours converts, with real vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.converters.families.checkpoints import write_checkpoint
from tests.converters.tokenizers.rebuild import rebuild, vocab_path

N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_LAYER = 64, 4, 2, 160, 2


def write_starcoder2(directory: Path, tree: Path, **changes: Any) -> Path:
    """A StarCoder2 checkpoint with biases everywhere and tied embeddings."""
    directory.mkdir(parents=True, exist_ok=True)
    rebuilt = rebuild(vocab_path(tree, "starcoder"), directory, flavour="starcoder")
    config = {
        "model_type": "starcoder2",
        "architectures": ["Starcoder2ForCausalLM"],
        "vocab_size": rebuilt.n_vocab,
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "num_hidden_layers": N_LAYER,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "norm_epsilon": 1e-5,
        "sliding_window": None,
        "use_bias": True,
        "tie_word_embeddings": True,
        "eos_token_id": rebuilt.eos_id,
        "bos_token_id": rebuilt.bos_id,
        "torch_dtype": "bfloat16",
        **changes,
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rebuilt.n_vocab, N_EMBD)}
    kv = N_EMBD // N_HEAD * N_HEAD_KV
    for i in range(N_LAYER):
        for name, rows, columns in (
            ("self_attn.q_proj", N_EMBD, N_EMBD),
            ("self_attn.k_proj", kv, N_EMBD),
            ("self_attn.v_proj", kv, N_EMBD),
            ("self_attn.o_proj", N_EMBD, N_EMBD),
            ("mlp.c_fc", N_FF, N_EMBD),
            ("mlp.c_proj", N_EMBD, N_FF),
        ):
            shapes[f"model.layers.{i}.{name}.weight"] = (rows, columns)
            shapes[f"model.layers.{i}.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes |= norm(f"model.layers.{i}.{name}")
    write_checkpoint(directory, config, shapes | norm("model.norm"))
    return directory


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (N_EMBD,), f"{name}.bias": (N_EMBD,)}


def change_document(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
