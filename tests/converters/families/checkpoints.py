"""Small checkpoints in the shapes of real ones, written without torch and the same every time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

_MXFP4 = ("_blocks", "_scales")
_NUMPY = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True)
class Case:
    """One checkpoint of the oracle tests.

    `vocabulary` is a flavour of `tokenizers.flavours`, a real tokenizer; `vocab_size` must
    then be at least its number of tokens. None leaves the tokenizer out on both sides, so that
    awkward shapes stay cheap. `files` are further documents (`README.md`) by name. `keep_mtp` is
    for checkpoints with an MTP head: True and False are upstream's default and `--no-mtp`.
    """

    name: str
    config: Mapping[str, Any]
    shapes: Shapes
    dtype: str = "BF16"
    n_shards: int = 1
    vocabulary: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    keep_mtp: bool | None = None

    @property
    def n_vocab(self) -> int:
        return int({**self.config, **self.config.get("text_config", {})}["vocab_size"])


def write_case(case: Case, directory: Path) -> None:
    """Weights, `config.json` and further files of a case (its tokenizer is not written here)."""
    write_checkpoint(directory, case.config, case.shapes, dtype=case.dtype, n_shards=case.n_shards)
    for name, text in case.files.items():
        (directory / name).write_text(text, encoding="utf-8")


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any],
    shapes: Shapes,
    *,
    dtype: str = "BF16",
    n_shards: int = 1,
    seed: int = 0,
) -> None:
    """`config.json` and `n_shards` safetensors files (with an index when there are several) of
    seeded normal weights, and of bytes where a name is one of MXFP4's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    rng = np.random.default_rng(seed)
    tensors = {
        name: (
            "U8",
            rng.integers(*((116, 124) if name.endswith("_scales") else (0, 256)), shape, np.uint8),
        )
        if name.endswith(_MXFP4)
        else (dtype, random_values(rng, shape, dtype))
        for name, shape in shapes.items()
    }
    names = list(tensors)
    if n_shards == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return
    weight_map = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[shard * len(names) // n_shards : (shard + 1) * len(names) // n_shards]
        write_safetensors(directory / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def random_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Normal values of standard deviation 0.05 in `BF16` (as uint16), `F16` or `F32`."""
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(_NUMPY[dtype])


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, np.ndarray]], metadata: Mapping[str, str] = {}
) -> None:
    """A safetensors file of (dtype, array) by name, data in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, (dtype, array) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def decoder_shapes(
    config: Mapping[str, Any],
    *,
    attention_bias: Iterable[str] = (),
    mlp_bias: bool = False,
    head_norms: bool = False,
    prefix: str = "",
) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama-like decoder as transformers names them. `attention_bias` lists the
    projections (`q`, `k`, `v`, `o`) that have one; an untied head comes from the configuration.
    """
    n_embd, n_ff = config["hidden_size"], config["intermediate_size"]
    n_head = config["num_attention_heads"]
    head_dim = config.get("head_dim") or n_embd // n_head
    q_rows = n_head * head_dim
    kv_rows = (config.get("num_key_value_heads") or n_head) * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}model.embed_tokens.weight": (config["vocab_size"], n_embd)
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}model.layers.{i}."
        attention = {"q": (q_rows, n_embd), "k": (kv_rows, n_embd), "v": (kv_rows, n_embd)}
        for letter, shape in {**attention, "o": (n_embd, q_rows)}.items():
            shapes[f"{layer}self_attn.{letter}_proj.weight"] = shape
            if letter in attention_bias:
                shapes[f"{layer}self_attn.{letter}_proj.bias"] = shape[:1]
        mlp = {"gate": (n_ff, n_embd), "up": (n_ff, n_embd), "down": (n_embd, n_ff)}
        for name, shape in mlp.items():
            shapes[f"{layer}mlp.{name}_proj.weight"] = shape
            if mlp_bias:
                shapes[f"{layer}mlp.{name}_proj.bias"] = shape[:1]
        if head_norms:
            shapes[f"{layer}self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{layer}self_attn.k_norm.weight"] = (head_dim,)
        shapes[f"{layer}input_layernorm.weight"] = (n_embd,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (n_embd,)
    shapes[f"{prefix}model.norm.weight"] = (n_embd,)
    if not config.get("tie_word_embeddings", False):
        shapes[f"{prefix}lm_head.weight"] = (config["vocab_size"], n_embd)
    return shapes
