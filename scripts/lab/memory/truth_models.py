"""Models at their true sizes without their weights: configurations as published, shapes of every
tensor, and files whose blocks are valid but mean nothing. What a run of them takes is what a run of
the real model takes, and making one costs no more than writing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.families.layout import Checkpoint, SourceTensor
from boardfit.converters.families.registry import family_for
from boardfit.converters.formats.gguf.assign import assign_types
from boardfit.converters.formats.gguf.header import file_layout
from boardfit.converters.formats.gguf.recipe import GgufRecipe
from boardfit.converters.spec import KeyValue, ModelSpec, SourceIdentity
from boardfit.edge.files.ggml_types import GGML_TYPES
from boardfit.edge.files.gguf import read_header
from lab.memory.header_models import HEADER_MODELS, header_spec


def _config(
    model_type: str, layers: int, embd: int, heads: int, kv: int, ff: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": embd,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ff,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **more,
    }


_LFM2_ATTENDS = (2, 5, 8, 10, 12, 14)
_LFM2 = {
    "norm_eps": 1e-5,
    "conv_L_cache": 3,
    "block_auto_adjust_ff_dim": True,
    "layer_types": [
        "full_attention" if i in _LFM2_ATTENDS else "conv" for i in range(16)
    ],
}  # fmt: skip
_GEMMA3 = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "rope_local_base_freq": 10000.0,
}
_GRANITE_MOE = {
    "num_local_experts": 32,
    "num_experts_per_tok": 8,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015625,
    "logits_scaling": 6.0,
}

#: Published sizes, `config.json` of: HuggingFaceTB/SmolLM2-*, Qwen/Qwen2.5-*, Qwen/Qwen3-*,
#: google/gemma-3-*, LiquidAI/LFM2-*, ibm-granite/granite-3.1-1b-a400m-base, TinyLlama-1.1B,
#: meta-llama/Llama-3.*, allenai/OLMo-2-0425-1B.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": _config("llama", 30, 576, 9, 3, 1536, 49152),
    "smollm2-360m": _config("llama", 32, 960, 15, 5, 2560, 49152),
    "qwen2.5-0.5b": _config("qwen2", 24, 896, 14, 2, 4864, 151936),
    "qwen2.5-1.5b": _config("qwen2", 28, 1536, 12, 2, 8960, 151936),
    "qwen2.5-3b": _config("qwen2", 36, 2048, 16, 2, 11008, 151936),
    "qwen3-0.6b": _config("qwen3", 28, 1024, 16, 8, 3072, 151936, head_dim=128),
    "qwen3-1.7b": _config("qwen3", 28, 2048, 16, 8, 6144, 151936, head_dim=128),
    "qwen3-4b": _config("qwen3", 36, 2560, 32, 8, 9728, 151936, head_dim=128),
    "qwen3-8b": _config(
        "qwen3", 36, 4096, 32, 8, 12288, 151936, head_dim=128, tie_word_embeddings=False
    ),
    "gemma-3-270m": _config("gemma3_text", 18, 640, 4, 1, 2048, 262144, **_GEMMA3),
    "gemma-3-1b": _config("gemma3_text", 26, 1152, 4, 1, 6912, 262144, **_GEMMA3),
    "lfm2-350m": _config("lfm2", 16, 1024, 16, 8, 6656, 65536, **_LFM2),
    "lfm2-1.2b": _config("lfm2", 16, 2048, 32, 8, 12288, 65536, **_LFM2),
    "granite-1b-a400m": _config("granitemoe", 24, 1024, 16, 8, 512, 49155, **_GRANITE_MOE),
    "tinyllama-1.1b": _config(
        "llama", 22, 2048, 32, 4, 5632, 32000, tie_word_embeddings=False
    ),
    "llama-3.2-1b": _config("llama", 16, 2048, 32, 8, 8192, 128256),
    "llama-3.2-3b": _config("llama", 28, 3072, 24, 8, 8192, 128256),
    "llama-3.1-8b": _config(
        "llama", 32, 4096, 32, 8, 14336, 128256, tie_word_embeddings=False
    ),
    "olmo-2-1b": _config("olmo2", 16, 2048, 16, 16, 8192, 100352, tie_word_embeddings=False),
}  # fmt: skip


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors, as transformers saves them."""
    kind, n_embd = config["model_type"], config["hidden_size"]
    norm = "embedding_norm" if kind == "lfm2" else "norm"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], n_embd),
        f"model.{norm}.weight": (n_embd,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], n_embd)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {layer + name: shape for name, shape in _layer_shapes(config, i)}
    return shapes


def _layer_shapes(config: Mapping[str, Any], i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    kind, d, ff = config["model_type"], config["hidden_size"], config["intermediate_size"]
    if kind == "lfm2":
        yield from _lfm2_mixer(config, i)
        n_ff = -(-int(2 * ff / 3) // 256) * 256
        yield from (
            ("feed_forward.w1.weight", (n_ff, d)),
            ("feed_forward.w2.weight", (d, n_ff)),
            ("feed_forward.w3.weight", (n_ff, d)),
            ("operator_norm.weight", (d,)),
            ("ffn_norm.weight", (d,)),
        )
        return
    yield from _attention(config)
    if kind == "granitemoe":
        n = config["num_local_experts"]
        yield "block_sparse_moe.router.layer.weight", (n, d)
        yield "block_sparse_moe.input_linear.weight", (n, 2 * ff, d)
        yield "block_sparse_moe.output_linear.weight", (n, d, ff)
    else:
        yield from (
            ("mlp.gate_proj.weight", (ff, d)),
            ("mlp.up_proj.weight", (ff, d)),
            ("mlp.down_proj.weight", (d, ff)),
        )
    norms = ["post_attention_layernorm"]
    norms += ["post_feedforward_layernorm"] if kind in ("olmo2", "gemma3_text") else []
    norms += ["pre_feedforward_layernorm"] if kind == "gemma3_text" else []
    norms += ["input_layernorm"] if kind != "olmo2" else []
    for norm in norms:
        yield f"{norm}.weight", (d,)


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _attention(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    kind, d, head = config["model_type"], config["hidden_size"], _head_dim(config)
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        yield f"self_attn.{name}_proj.weight", (rows, d)
        if kind == "qwen2":
            yield f"self_attn.{name}_proj.bias", (rows,)
    yield "self_attn.o_proj.weight", (d, q)
    if kind in ("qwen3", "gemma3_text", "olmo2"):
        whole = kind == "olmo2"  # OLMo 2 norms all heads as one
        yield "self_attn.q_norm.weight", (q if whole else head,)
        yield "self_attn.k_norm.weight", (kv if whole else head,)


def _lfm2_mixer(config: Mapping[str, Any], i: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, head = config["hidden_size"], _head_dim(config)
    kv = config["num_key_value_heads"] * head
    if config["layer_types"][i] == "conv":
        yield "conv.conv.weight", (d, 1, config["conv_L_cache"])
        yield "conv.in_proj.weight", (3 * d, d)
        yield "conv.out_proj.weight", (d, d)
        return
    for name, rows in (("q", d), ("k", kv), ("v", kv)):
        yield f"self_attn.{name}_proj.weight", (rows, d)
    yield "self_attn.out_proj.weight", (d, d)
    yield "self_attn.q_layernorm.weight", (head,)
    yield "self_attn.k_layernorm.weight", (head,)


@dataclass
class HollowCheckpoint:
    """A checkpoint of one value: shapes as published, nothing behind them."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def names(self) -> Iterable[str]:
        return self.shapes

    def tensor(self, name: str) -> SourceTensor:
        data = np.broadcast_to(np.uint16(0), self.shapes[name])
        return SourceTensor(name, "BF16", self.shapes[name], data)


# Vocabularies that upstream keeps for its tests, by model: models/ggml-vocab-<name>.gguf.
_REAL_VOCABULARY = {
    "qwen3.5": "qwen35",
    "qwen": "qwen2",
    "gemma-4": "gemma-4",
    "llama-3": "llama-bpe",
    "tinyllama": "llama-spm",
}


def hollow_spec(name: str, upstream: Path | None = None) -> ModelSpec:
    """One of `CONFIGS` or `HEADER_MODELS` as a spec to plan for. With `upstream`, a llama.cpp
    source tree, the real vocabulary is taken from there where it has it; otherwise it is made up,
    of true size.
    """
    if name in HEADER_MODELS:
        model = HEADER_MODELS[name]
        vocabulary = _real_vocabulary(name, model.n_vocab, upstream)
        return header_spec(name, model, vocabulary or _made_up(name, model.n_vocab))
    config = CONFIGS[name]
    checkpoint: Checkpoint = HollowCheckpoint(config, tensor_shapes(config))
    family = family_for(config)(checkpoint)
    metadata = [
        KeyValue("general.architecture", family.arch, GGUFValueType.STRING),
        KeyValue("general.name", name, GGUFValueType.STRING),
        *family.metadata(),
        *(
            _real_vocabulary(name, config["vocab_size"], upstream)
            or _made_up(name, config["vocab_size"])
        ),
    ]
    return ModelSpec(
        name,
        config["model_type"],
        family.shape(),
        tuple(metadata),
        tuple(family.tensors()),
        SourceIdentity("hf-directory", "nowhere", {}, "0" * 64),
    )


def _real_vocabulary(name: str, n_vocab: int, upstream: Path | None) -> list[KeyValue]:
    found = [file for prefix, file in _REAL_VOCABULARY.items() if name.startswith(prefix)]
    if upstream is None or not found:
        return []
    header = read_header(upstream / "models" / f"ggml-vocab-{found[0]}.gguf", arrays="full")
    tokens = list(header.get("tokenizer.ggml.tokens"))[:n_vocab]
    padding = n_vocab - len(tokens)  # matrices are padded beyond the vocabulary
    tokens += [f"[PAD{i}]" for i in range(padding)]
    kinds = [*list(header.get("tokenizer.ggml.token_type"))[:n_vocab], *[5] * padding]
    scores = header.get("tokenizer.ggml.scores")
    return _entries(
        str(header.text("tokenizer.ggml.model")),
        str(header.text("tokenizer.ggml.pre") or "default"),
        tokens,
        kinds,
        merges=list(header.get("tokenizer.ggml.merges") or ()),
        scores=[*scores, *[0.0] * padding] if scores else (),
    )


def _made_up(name: str, n_vocab: int) -> list[KeyValue]:
    """Texts of 2 to 11 characters, as most real ones, each the join of two others. Gemma 3's and
    TinyLlama's vocabularies have scores in place of merges.
    """
    tokens = [_word(i) for i in range(n_vocab)]
    if name.startswith(("gemma", "tinyllama")):
        kinds = [2, 3, 3, *[6] * 256, *[1] * (n_vocab - 259)]
        tokens[:259] = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
        scores = [-float(i) for i in range(n_vocab)]
        return _entries("llama", "default", tokens, kinds, scores=scores)
    n_merges = 280147 if name.startswith("llama-3") else n_vocab - 256
    merges = [f"{tokens[i // 3 % n_vocab]} {tokens[i % 251]}" for i in range(256, 256 + n_merges)]
    kinds = [1] * (n_vocab - 1) + [3]  # normal; the last one is a control token
    return _entries("gpt2", "gpt-2", tokens, kinds, merges=merges)


def _entries(
    model: str,
    pre: str,
    tokens: Sequence[str],
    kinds: Sequence[int],
    *,
    merges: Sequence[str] = (),
    scores: Sequence[float] = (),
) -> list[KeyValue]:
    text, array = GGUFValueType.STRING, GGUFValueType.ARRAY
    number, last = GGUFValueType.UINT32, len(tokens) - 1
    found = [
        KeyValue("tokenizer.ggml.model", model, text),
        KeyValue("tokenizer.ggml.pre", pre, text),
        KeyValue("tokenizer.ggml.tokens", list(tokens), array, text),
        KeyValue("tokenizer.ggml.token_type", list(kinds), array, GGUFValueType.INT32),
        KeyValue("tokenizer.ggml.bos_token_id", last, number),
        KeyValue("tokenizer.ggml.eos_token_id", last, number),
    ]
    if merges:
        found.append(KeyValue("tokenizer.ggml.merges", list(merges), array, text))
    if scores:
        found.append(KeyValue("tokenizer.ggml.scores", list(scores), array, GGUFValueType.FLOAT32))
    return found


def _word(i: int) -> str:
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    text = ""
    while True:
        i, rest = divmod(i, 26)
        text += letters[rest]
        if not i:
            return "Ġ" * (len(text) % 2) + text + letters[len(text)] * (len(text) // 2)


def write_hollow(spec: ModelSpec, recipe: GgufRecipe, path: Path) -> int:
    """Write `spec` in `recipe`, every tensor a tile of small random values; returns bytes.

    The blocks are valid, so that no kernel meets a NaN; nothing is quantized but one tile a type.
    """
    layout = file_layout(spec, recipe, assign_types(spec, recipe))
    tiles: dict[str, bytes] = {}
    with path.open("wb") as file:
        file.write(layout.header)
        for i, entry in enumerate(layout.tensors):
            tile = tiles.setdefault(entry.type, b"") or _tile(entry.type)
            tiles[entry.type] = tile
            whole, rest = divmod(entry.nbytes, len(tile))
            for _ in range(whole):
                file.write(tile)
            file.write(tile[:rest] + bytes(layout.padding(i)))
    assert path.stat().st_size == layout.nbytes
    return layout.nbytes


def _tile(ggml_type: str) -> bytes:
    """About 1 MiB of one type's blocks."""
    from gguf import GGMLQuantizationType, quants

    draw = np.random.default_rng(0)
    values = draw.normal(0.0, 0.02, (1024, 256)).astype(np.float32)
    if ggml_type == "F32":
        return values.tobytes()
    if ggml_type == "F16":
        return values.astype(np.float16).tobytes()
    if ggml_type == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    try:
        return bytes(quants.quantize(values, GGMLQuantizationType[ggml_type]).tobytes())
    except NotImplementedError:
        return _random_blocks(ggml_type, draw)


# Where a block keeps its half-precision scales. Source: ggml/src/ggml-common.h.
_SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
           "IQ4_NL": (0,), "IQ4_XS": (0,)}  # fmt: skip


def _random_blocks(ggml_type: str, draw: np.random.Generator) -> bytes:
    size = GGML_TYPES[ggml_type].type_size
    blocks = draw.integers(0, 256, (4096, size), dtype=np.uint8)
    for place in _SCALES[ggml_type]:
        scale = np.full(4096, 1e-4, np.float16).view(np.uint8).reshape(4096, 2)
        blocks[:, place : place + 2] = scale
    return blocks.tobytes()
