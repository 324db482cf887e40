"""Small random models as `ModelSpec`s, and the same as float GGUF files for upstream to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType as V

from boardfit.converters.families.registry import family_for
from boardfit.converters.formats.gguf.imatrix import Imatrix
from boardfit.converters.source.checkpoint import SafetensorsCheckpoint
from boardfit.converters.spec import KeyValue, ModelSpec, SourceIdentity, TargetTensor
from boardfit.device_profiles.shape import LayerShape, ModelShape
from tests.converters.families.checkpoints import Case, write_case

_QTYPES = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "BF16": gguf.GGMLQuantizationType.BF16,
}


@dataclass(frozen=True)
class Dims:
    """Sizes of a model to make up."""

    arch: str = "llama"
    n_layer: int = 4
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 1
    head_dim: int = 64
    n_ff: int = 512
    n_vocab: int = 320
    n_expert: int = 0
    tied: bool = False
    window: int | None = None
    dtype: str = "BF16"
    kind: str = "hf-directory"


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 → what a checkpoint of `dtype` holds (BF16 as uint16, cut, not rounded)."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype])


def reader(data: np.ndarray) -> Any:
    flat = data.reshape(-1, data.shape[-1])
    return lambda start, stop: flat[start:stop]


def tensor(name: str, data: np.ndarray, source_type: str, keep: str | None = None) -> TargetTensor:
    return TargetTensor(
        name, data.shape, source_type, reader(data), keep=keep, origin=f"checkpoint:{name}"
    )


def make_spec(dims: Dims, seed: int = 0) -> ModelSpec:
    """A random model; matrices in `dims.dtype`, norms and routers kept in F32."""
    rng = np.random.default_rng(seed)

    def matrix(name: str, *shape: int) -> TargetTensor:
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.05)
        values.reshape(-1)[:: max(7, values.size // 50)] *= 8  # outliers, as real weights have
        return tensor(name, to_dtype(values, dims.dtype), dims.dtype)

    def kept(name: str, *shape: int) -> TargetTensor:
        values = 1 + rng.standard_normal(shape).astype(np.float32) * np.float32(0.1)
        if dims.kind == "gguf":
            return tensor(name, values, "F32")
        return tensor(name, to_dtype(values, dims.dtype), dims.dtype, keep="F32")

    d = dims
    tensors = [matrix("token_embd.weight", d.n_vocab, d.n_embd)]
    for i in range(d.n_layer):
        p = f"blk.{i}."
        tensors += [
            kept(p + "attn_norm.weight", d.n_embd),
            matrix(p + "attn_output.weight", d.n_embd, d.n_head * d.head_dim),
            kept(p + "ffn_norm.weight", d.n_embd),
        ]
        if d.arch == "phi3":  # query, key and value in one matrix, gate and up in another
            rows = (d.n_head + 2 * d.n_head_kv) * d.head_dim
            tensors += [
                matrix(p + "attn_qkv.weight", rows, d.n_embd),
                matrix(p + "ffn_up.weight", 2 * d.n_ff, d.n_embd),
                matrix(p + "ffn_down.weight", d.n_embd, d.n_ff),
            ]
            continue
        tensors += [
            matrix(p + "attn_q.weight", d.n_head * d.head_dim, d.n_embd),
            matrix(p + "attn_k.weight", d.n_head_kv * d.head_dim, d.n_embd),
            matrix(p + "attn_v.weight", d.n_head_kv * d.head_dim, d.n_embd),
        ]
        if d.arch == "qwen2":
            tensors.append(kept(p + "attn_q.bias", d.n_head * d.head_dim))
        if d.arch.startswith("qwen3"):
            tensors.append(kept(p + "attn_q_norm.weight", d.head_dim))
            tensors.append(kept(p + "attn_k_norm.weight", d.head_dim))
        if d.n_expert:
            tensors += [
                kept(p + "ffn_gate_inp.weight", d.n_expert, d.n_embd),
                matrix(p + "ffn_gate_exps.weight", d.n_expert, d.n_ff, d.n_embd),
                matrix(p + "ffn_down_exps.weight", d.n_expert, d.n_embd, d.n_ff),
                matrix(p + "ffn_up_exps.weight", d.n_expert, d.n_ff, d.n_embd),
            ]
        else:
            tensors += [
                matrix(p + "ffn_gate.weight", d.n_ff, d.n_embd),
                matrix(p + "ffn_down.weight", d.n_embd, d.n_ff),
                matrix(p + "ffn_up.weight", d.n_ff, d.n_embd),
            ]
    tensors.append(kept("output_norm.weight", d.n_embd))
    if not d.tied:
        tensors.append(matrix("output.weight", d.n_vocab, d.n_embd))
    n_params = sum(t.n_elements for t in tensors)
    return ModelSpec(
        name="made-up",
        family=d.arch,
        shape=ModelShape(
            arch=d.arch,
            n_layer=d.n_layer,
            n_embd=d.n_embd,
            n_head=d.n_head,
            n_ff=d.n_ff,
            n_vocab=d.n_vocab,
            n_ctx_train=512,
            layers=(LayerShape(d.n_head_kv, d.head_dim, d.head_dim, d.window),) * d.n_layer,
            n_params=n_params,
            n_params_active=n_params,
            n_expert=d.n_expert,
            n_expert_used=2 if d.n_expert else 0,
            tied_embeddings=d.tied,
        ),
        metadata=tuple(_metadata(d)),
        tensors=tuple(tensors),
        source=SourceIdentity(d.kind, "memory", {"made-up": n_params}, f"{d}-{seed}"),
    )


def family_spec(case: Case, directory: Path) -> ModelSpec:
    """A checkpoint of a family as a spec, with the vocabulary of the models made up here."""
    write_case(case, directory)
    checkpoint = SafetensorsCheckpoint(directory, case.config)
    family = family_for(case.config)(checkpoint)
    shape = family.shape()
    made_up = _metadata(Dims(family.arch, n_vocab=shape.n_vocab))
    vocabulary = [kv for kv in made_up if kv.key.startswith("tokenizer.")]
    return ModelSpec(
        name=case.name,
        family=family.arch,
        shape=shape,
        metadata=(*made_up[:2], *family.metadata(), *vocabulary),
        tensors=tuple(family.tensors()),
        source=SourceIdentity("hf-directory", "memory", {"made-up": shape.n_params}, case.name),
    )


def _metadata(d: Dims) -> list[KeyValue]:
    a = d.arch
    out = [
        KeyValue("general.architecture", a, V.STRING),
        KeyValue("general.name", "made-up é", V.STRING),
        KeyValue(f"{a}.block_count", d.n_layer, V.UINT32),
        KeyValue(f"{a}.context_length", 512, V.UINT32),
        KeyValue(f"{a}.embedding_length", d.n_embd, V.UINT32),
        KeyValue(f"{a}.feed_forward_length", d.n_ff, V.UINT32),
        KeyValue(f"{a}.attention.head_count", d.n_head, V.UINT32),
        KeyValue(f"{a}.attention.head_count_kv", d.n_head_kv, V.UINT32),
        KeyValue(f"{a}.attention.key_length", d.head_dim, V.UINT32),
        KeyValue(f"{a}.attention.value_length", d.head_dim, V.UINT32),
        KeyValue(f"{a}.attention.layer_norm_rms_epsilon", 1e-5, V.FLOAT32),
        KeyValue(f"{a}.rope.freq_base", 10000.0, V.FLOAT32),
        KeyValue(f"{a}.rope.dimension_count", d.head_dim, V.UINT32),
    ]
    if d.n_expert:
        out += [
            KeyValue(f"{a}.expert_count", d.n_expert, V.UINT32),
            KeyValue(f"{a}.expert_used_count", 2, V.UINT32),
            KeyValue(f"{a}.expert_feed_forward_length", d.n_ff, V.UINT32),
        ]
    if d.arch == "falcon":
        out.append(KeyValue(f"{a}.attention.layer_norm_epsilon", 1e-5, V.FLOAT32))
    if d.window:
        out.append(KeyValue(f"{a}.attention.sliding_window", d.window, V.UINT32))
    # bytes as tokens: enough of an SPM vocabulary for the engine to load and to tokenize with
    special = ["<unk>", "<s>", "</s>"]
    tokens = special + [f"<0x{b:02X}>" for b in range(256)]
    tokens += [f"word{i}" for i in range(d.n_vocab - len(tokens))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (d.n_vocab - 259)
    scores = [0.0] * 259 + [-float(i) for i in range(d.n_vocab - 259)]
    out += [
        KeyValue("tokenizer.ggml.model", "llama", V.STRING),
        KeyValue("tokenizer.ggml.tokens", tokens, V.ARRAY, V.STRING),
        KeyValue("tokenizer.ggml.scores", scores, V.ARRAY, V.FLOAT32),
        KeyValue("tokenizer.ggml.token_type", kinds, V.ARRAY, V.INT32),
        KeyValue("tokenizer.ggml.bos_token_id", 1, V.UINT32),
        KeyValue("tokenizer.ggml.eos_token_id", 2, V.UINT32),
        KeyValue("tokenizer.ggml.add_bos_token", True, V.BOOL),
    ]
    return out


def write_reference(spec: ModelSpec, path: Path) -> Path:
    """The spec as a lossless GGUF, written by the `gguf` package and not by our code."""
    writer = gguf.GGUFWriter(path, spec.arch)
    for kv in spec.metadata[1:]:  # the writer adds general.architecture itself
        writer.add_key_value(kv.key, kv.value, kv.value_type, kv.item_type)
    for t in spec.tensors:
        rows = t.read(0, t.n_rows)
        if t.keep == "F32" and t.source_type == "BF16":
            rows = (rows.astype(np.uint32) << 16).view(np.float32)
        elif t.keep == "F32":
            rows = rows.astype(np.float32)
        data = np.ascontiguousarray(rows).reshape(t.shape)
        if data.dtype == np.uint16:
            data = data.view(np.float16)  # the writer's way to take two-byte values as they are
        writer.add_tensor(t.name, data, raw_dtype=_QTYPES[t.keep or t.source_type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_imatrix(spec: ModelSpec, seed: int = 1) -> Imatrix:
    """Made-up importances for every matrix but the embedding and one that was never exercised."""
    rng = np.random.default_rng(seed)
    entries = {}
    for t in spec.tensors:
        if len(t.shape) < 2 or t.name in ("token_embd.weight", "blk.0.attn_k.weight"):
            continue
        n_experts = t.shape[0] if len(t.shape) == 3 else 1
        values = rng.gamma(0.5, 1.0, n_experts * t.n_per_row).astype(np.float32)
        entries[t.name] = values + np.float32(1e-6)
    return Imatrix(entries, "some/made-up.gguf", ("text.txt",), 7)
