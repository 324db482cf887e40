"""Small models for planning tests: specs without data, and GGUF files whose weights are holes."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from boardfit.converters.spec import KeyValue, ModelSpec, SourceIdentity, TargetTensor
from boardfit.device_profiles.cost.memory import StoredTensor
from boardfit.device_profiles.shape import LayerShape, ModelShape
from boardfit.edge.files.ggml_types import GGML_TYPES


@dataclass(frozen=True)
class Dims:
    """Dimensions of a made-up model. `types` maps `w`, `embd`, `output` to ggml types."""

    arch: str = "llama"
    n_layer: int = 4
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_ff: int = 768
    n_vocab: int = 4096
    n_ctx_train: int = 32768
    tied: bool = False
    window: int | None = None
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int = 0
    types: dict[str, str] = field(default_factory=dict)

    def replace(self, **changes: object) -> Dims:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def layer_window(self, layer: int) -> int | None:
        """Windows as src/models/gemma2.cpp and gemma3.cpp alternate them."""
        if self.arch == "gemma2":
            return self.window if layer % 2 == 0 else None
        if self.arch == "gemma3":
            return self.window if (layer + 1) % 6 else None
        return None

    def is_convolution(self, layer: int) -> bool:
        """Whether a layer is one of LFM2's gated convolutions: two of three here."""
        return self.arch == "lfm2" and layer % 3 != 2


def shape_of(dims: Dims) -> ModelShape:
    layers = tuple(
        LayerShape(dims.n_head_kv, dims.head_dim, dims.head_dim, dims.layer_window(i))
        if not dims.is_convolution(i)
        else LayerShape(0, dims.head_dim, dims.head_dim, state_values=2 * dims.n_embd)
        for i in range(dims.n_layer)
    )
    n_params = sum(tensor.n_elements for tensor in stored_tensors(dims))
    return ModelShape(
        arch=dims.arch,
        n_layer=dims.n_layer,
        n_embd=dims.n_embd,
        n_head=dims.n_head,
        n_ff=dims.n_ff,
        n_vocab=dims.n_vocab,
        n_ctx_train=dims.n_ctx_train,
        layers=layers,
        n_params=n_params,
        n_params_active=n_params,
        n_expert=dims.n_expert,
        n_expert_used=dims.n_expert_used,
        tied_embeddings=dims.tied,
    )


def tensor_shapes(dims: Dims) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, row-major shape, ggml type) of every tensor, as the engine's loader expects them."""
    d, weight = dims.n_embd, dims.types.get("w", "Q4_0")
    q, kv = dims.n_head * dims.head_dim, dims.n_head_kv * dims.head_dim
    out: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (dims.n_vocab, d), dims.types.get("embd", "Q4_0")),
        ("token_embd_norm.weight" if dims.arch == "lfm2" else "output_norm.weight", (d,), "F32"),
    ]
    if not dims.tied:
        out.append(("output.weight", (dims.n_vocab, d), dims.types.get("output", "Q6_K")))
    for i in range(dims.n_layer):
        block: list[tuple[str, tuple[int, ...], str]] = [
            ("attn_norm", (d,), "F32"),
            ("ffn_norm", (d,), "F32"),
        ]
        if dims.is_convolution(i):
            block += [
                ("shortconv.conv", (d, 3), "F32"),
                ("shortconv.in_proj", (3 * d, d), weight),
                ("shortconv.out_proj", (d, d), weight),
            ]
        elif dims.arch == "phi3":
            block += [("attn_qkv", (q + 2 * kv, d), weight), ("attn_output", (d, q), weight)]
        else:
            block += [("attn_q", (q, d), weight), ("attn_k", (kv, d), weight)]
            block += [("attn_v", (kv, d), weight), ("attn_output", (d, q), weight)]
        qk_norm = dims.arch in ("qwen3", "qwen3moe", "gemma3", "lfm2")
        if qk_norm and not dims.is_convolution(i):
            block += [(f"attn_{x}_norm", (dims.head_dim,), "F32") for x in "qk"]
        if dims.arch in ("gemma2", "gemma3"):
            block += [("post_attention_norm", (d,), "F32"), ("post_ffw_norm", (d,), "F32")]
        if dims.n_expert:
            wide = dims.n_ff_expert
            block += [("ffn_gate_inp", (dims.n_expert, d), "F32")]
            block += [(f"ffn_{x}_exps", (dims.n_expert, wide, d), weight) for x in ("gate", "up")]
            block += [("ffn_down_exps", (dims.n_expert, d, wide), weight)]
        elif dims.arch == "phi3":  # gate and up in one matrix
            block += [("ffn_up", (2 * dims.n_ff, d), weight), ("ffn_down", (d, dims.n_ff), weight)]
        else:
            block += [(f"ffn_{x}", (dims.n_ff, d), weight) for x in ("gate", "up")]
            block += [("ffn_down", (d, dims.n_ff), weight)]
        out += [(f"blk.{i}.{name}.weight", shape, kind) for name, shape, kind in block]
    return out


def n_bytes(shape: tuple[int, ...], type_name: str) -> int:
    entry = GGML_TYPES[type_name]
    return int(np.prod(shape)) // entry.block_size * entry.type_size


def stored_tensors(dims: Dims) -> tuple[StoredTensor, ...]:
    return tuple(
        StoredTensor(
            name,
            kind,
            shape[-1],
            shape[-2] if len(shape) > 1 else 1,
            shape[0] if len(shape) > 2 else 1,
            n_bytes(shape, kind),
        )
        for name, shape, kind in tensor_shapes(dims)
    )


def write_hollow_gguf(path: Path, dims: Dims) -> None:
    """A file that the engine loads and runs, without a vocabulary; all weights are zeros that take
    no room on disk.
    """
    writer = gguf.GGUFWriter(None, dims.arch)  # type: ignore[arg-type]
    writer.add_context_length(dims.n_ctx_train)
    writer.add_embedding_length(dims.n_embd)
    writer.add_block_count(dims.n_layer)
    writer.add_feed_forward_length(dims.n_ff)
    writer.add_head_count(dims.n_head)
    kv_heads = [0 if dims.is_convolution(i) else dims.n_head_kv for i in range(dims.n_layer)]
    writer.add_head_count_kv(kv_heads if 0 in kv_heads else dims.n_head_kv)
    if dims.arch == "lfm2":
        writer.add_uint32("lfm2.shortconv.l_cache", 3)
    if dims.arch == "phi3":
        writer.add_uint32("phi3.rope.scaling.original_context_length", dims.n_ctx_train)
    writer.add_key_length(dims.head_dim)
    writer.add_value_length(dims.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dims.head_dim)
    writer.add_vocab_size(dims.n_vocab)
    writer.add_tokenizer_model("none")
    if dims.window:
        writer.add_sliding_window(dims.window)
    if dims.n_expert:
        writer.add_expert_count(dims.n_expert)
        writer.add_expert_used_count(dims.n_expert_used)
        writer.add_expert_feed_forward_length(dims.n_ff_expert)
    total = 0
    for name, shape, kind in tensor_shapes(dims):
        size = n_bytes(shape, kind)
        total += -(-size // 32) * 32
        raw, row = GGMLQuantizationType[kind], n_bytes(shape[-1:], kind)
        if kind in ("F32", "F16"):
            dtype = np.dtype("float32" if kind == "F32" else "float16")
            writer.add_tensor_info(name, list(shape), dtype, size)
        else:
            dtype = np.dtype("uint8")
            writer.add_tensor_info(name, [*shape[:-1], row], dtype, size, raw_dtype=raw)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    begin = -(-os.path.getsize(path) // 32) * 32
    os.truncate(path, begin + total)


def make_spec(dims: Dims, *, name: str = "test model") -> ModelSpec:
    """The model as a bf16 checkpoint: names and shapes, no data behind them."""

    def refuse(start: int, stop: int) -> np.ndarray:
        raise AssertionError("planning must not read tensor data")

    tensors = tuple(
        TargetTensor(name, shape, "BF16", refuse, "F32" if kind == "F32" else None)
        for name, shape, kind in tensor_shapes(dims)
    )
    numbers = {
        "block_count": dims.n_layer,
        "attention.head_count": dims.n_head,
        "attention.head_count_kv": dims.n_head_kv,
        "expert_count": dims.n_expert,
    }
    metadata = [KeyValue("general.architecture", dims.arch, GGUFValueType.STRING)]
    metadata += [
        KeyValue(f"{dims.arch}.{key}", value, GGUFValueType.UINT32)
        for key, value in numbers.items()
    ]
    tokens = [f"token {i}" for i in range(dims.n_vocab)]
    metadata.append(
        KeyValue("tokenizer.ggml.tokens", tokens, GGUFValueType.ARRAY, GGUFValueType.STRING)
    )
    source = SourceIdentity("hf-directory", "nowhere", {}, "0" * 64)
    return ModelSpec(name, dims.arch, shape_of(dims), tuple(metadata), tensors, source)
