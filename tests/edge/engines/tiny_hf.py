"""The models of `tiny_gguf` as Hugging Face checkpoints: the same weights, vocabulary and template,
so that one contract test runs on every engine, whatever file it loads, and engines can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from boardfit.edge.engines.hf_tokenizer import HfTokenizer
from boardfit.edge.engines.model_file import built_file
from tests.edge.engines import tiny_gguf
from tests.edge.engines.tiny_gguf import BOS, F32, IM_END, MERGES, N_VOCAB, PAD, SPECIALS, TEMPLATE

N_HEAD, N_HEAD_KV = 4, 2
RMS_EPS, ROPE_BASE = 1e-5, 10000.0

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def write_llama(folder: Path, tensors: Mapping[str, F32], *, n_ctx: int) -> Path:
    """A Llama checkpoint of the tensors that `tiny_gguf.llama_tensors` makes."""
    folder.mkdir(parents=True, exist_ok=True)
    n_embd = tensors["token_embd.weight"].shape[1]
    n_layer = sum(name.endswith("attn_q.weight") for name in tensors)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": N_VOCAB,
        "hidden_size": n_embd,
        "intermediate_size": tensors["blk.0.ffn_gate.weight"].shape[0],
        "num_hidden_layers": n_layer,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "head_dim": n_embd // N_HEAD,
        "max_position_embeddings": n_ctx,
        "rope_theta": ROPE_BASE,
        "rms_norm_eps": RMS_EPS,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": IM_END,
        "pad_token_id": PAD,
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": BOS, "eos_token_id": IM_END, "pad_token_id": PAD},
    )
    renamed = {hf_name(name): as_hf(name, tensor) for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    return folder


def write_lfm2(folder: Path, *, n_ctx: int) -> Path:
    """An LFM2 of one convolution and one attention layer, random: part of its memory has no
    positions and cannot be cut back (upstream: transformers' `modeling_lfm2.py`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_embd, n_ff, dim = 64, 96, 16
    rng = np.random.default_rng(4)

    def normal(*shape: int) -> F32:
        return rng.standard_normal(shape).astype(np.float32) / np.sqrt(shape[-1]) * 1.5

    tensors = {
        "model.embed_tokens.weight": normal(N_VOCAB, n_embd),
        "model.embedding_norm.weight": np.ones(n_embd, np.float32),
        "model.layers.0.conv.conv.weight": normal(n_embd, 1, 3),
        "model.layers.0.conv.in_proj.weight": normal(3 * n_embd, n_embd),
        "model.layers.0.conv.out_proj.weight": normal(n_embd, n_embd),
    }
    attention = "model.layers.1.self_attn."
    for name, heads in (("q", N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV)):
        tensors[f"{attention}{name}_proj.weight"] = normal(heads * dim, n_embd)
    tensors[attention + "out_proj.weight"] = normal(n_embd, n_embd)
    for name in ("q", "k"):
        tensors[f"{attention}{name}_layernorm.weight"] = np.ones(dim, np.float32)
    for layer in ("model.layers.0.", "model.layers.1."):
        tensors[layer + "feed_forward.w1.weight"] = normal(n_ff, n_embd)
        tensors[layer + "feed_forward.w2.weight"] = normal(n_embd, n_ff)
        tensors[layer + "feed_forward.w3.weight"] = normal(n_ff, n_embd)
        tensors[layer + "ffn_norm.weight"] = np.ones(n_embd, np.float32)
        tensors[layer + "operator_norm.weight"] = np.ones(n_embd, np.float32)
    config = {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "vocab_size": N_VOCAB,
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": 2,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "layer_types": ["conv", "full_attention"],
        "conv_L_cache": 3,
        "conv_bias": False,
        "norm_eps": RMS_EPS,
        "max_position_embeddings": n_ctx,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": IM_END,
        "pad_token_id": PAD,
        "dtype": "float32",
    }
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    return folder


def hf_name(name: str) -> str:
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, layer, kind, weight = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.{weight}"


def as_hf(name: str, tensor: F32) -> F32:
    """llama.cpp rotates neighbouring rows of queries and keys, transformers the two halves of a
    head: the conversion permutes rows one way (upstream: `LlamaModel.permute`), this the other.
    """
    n_head = {"attn_q": N_HEAD, "attn_k": N_HEAD_KV}.get(name.split(".")[-2])
    if n_head is None:
        return np.ascontiguousarray(tensor)
    rows, columns = tensor.shape
    halves = tensor.reshape(n_head, rows // n_head // 2, 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(halves.reshape(rows, columns))


def write_tokenizer(folder: Path) -> None:
    """The byte-level vocabulary of `tiny_gguf`, with its ids."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    vocab = {t: i for i, t in enumerate([*tiny_gguf.byte_characters(), *merged])}
    added: list[dict[str, Any]] = [
        {
            "id": len(vocab) + i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, text in enumerate(SPECIALS)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    bos = {"SpecialToken": {"id": SPECIALS[0], "type_id": 0}}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, *({"Sequence": {"id": s, "type_id": 0}} for s in "AB")],
            "special_tokens": {
                SPECIALS[0]: {"id": SPECIALS[0], "ids": [BOS], "tokens": [SPECIALS[0]]}
            },
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [merge.split() for merge in MERGES],
        },
    }  # fmt: skip
    write_json(folder / "tokenizer.json", document)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": True,
            "bos_token": SPECIALS[0],
            "eos_token": SPECIALS[2],
            "pad_token": SPECIALS[3],
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False))


def read_tokenizer(folder: Path) -> HfTokenizer:
    """The tokenizer of a model that would lie in `folder`."""
    model = folder / "model.tflite"
    model.touch()
    try:
        return HfTokenizer.of_model(built_file(model))
    finally:
        model.unlink()
