"""Small valid files to break: GGUF and safetensors packed by hand, field by field."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

ALIGNMENT = 32
U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B",
           U64: "Q", I64: "q", F64: "d"}  # fmt: skip
F32_TYPE, F16_TYPE, Q8_0_TYPE, Q4_K_TYPE = 0, 1, 8, 12


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(value_type: int, value: Any) -> bytes:
    return text(value) if value_type == STR else struct.pack("<" + FORMATS[value_type], value)


def kv(key: str | bytes, value_type: int, value: Any) -> bytes:
    return text(key) + struct.pack("<I", value_type) + scalar(value_type, value)


def array(key: str, item_type: int, values: Sequence[Any], count: int | None = None) -> bytes:
    n = len(values) if count is None else count
    items = b"".join(scalar(item_type, value) for value in values)
    return text(key) + struct.pack("<IIQ", ARR, item_type, n) + items


def tensor(
    name: str | bytes, dims: Sequence[int], type_id: int, offset: int, n_dims: int | None = None
) -> bytes:
    count = len(dims) if n_dims is None else n_dims
    shape = b"".join(struct.pack("<Q", dim) for dim in dims)
    return text(name) + struct.pack("<I", count) + shape + struct.pack("<IQ", type_id, offset)


def gguf(
    pairs: Sequence[bytes],
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    n_kv: int | None = None,
    n_tensors: int | None = None,
    alignment: int = ALIGNMENT,
) -> bytes:
    """A file of ready-made entries; counts can be made to lie."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_kv is None else n_kv,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *tensors])
    return head + (bytes(-len(head) % alignment) + data if tensors else b"")


def model(alignment: int = ALIGNMENT) -> bytes:
    """A file with every value type, arrays of every kind, and tensors of several types."""
    pairs = [
        kv("general.architecture", STR, "llama"),
        kv("general.alignment", U32, alignment),
        kv("llama.context_length", U32, 2048),
        kv("a.u8", U8, 200), kv("a.i8", I8, -3), kv("a.u16", U16, 65535), kv("a.i16", I16, -9),
        kv("a.i32", I32, -70000), kv("a.f32", F32, 1.5), kv("a.bool", BOOL, 1),
        kv("a.u64", U64, 2**63), kv("a.i64", I64, -(2**62)), kv("a.f64", F64, 0.1),
        array("tokenizer.ggml.tokens", STR, ["<s>", "é", "▁the", ""]),
        array("tokenizer.ggml.scores", F32, [0.0, -1.0, -2.0, -3.0]),
        array("tokenizer.ggml.token_type", I32, [1, 1, 1, 3]),
        array("a.bools", BOOL, [0, 1, 1]),
        array("a.empty", STR, []),
        kv("tokenizer.chat_template", STR, "{{ messages }}"),
    ]  # fmt: skip
    shapes = [
        ("token_embd.weight", (256, 4), Q4_K_TYPE, 4 * 144),
        ("blk.0.attn_norm.weight", (32,), F32_TYPE, 32 * 4),
        ("blk.0.attn_q.weight", (32, 3), Q8_0_TYPE, 3 * 34),
        ("blk.0.odd.weight", (3, 5, 7), F16_TYPE, 3 * 5 * 7 * 2),
    ]
    entries, offset = [], 0
    for name, dims, type_id, nbytes in shapes:
        entries.append(tensor(name, dims, type_id, offset))
        offset += nbytes + -nbytes % alignment
    return gguf(pairs, entries, bytes(offset), alignment=alignment)


def vocabulary() -> bytes:
    """A file without tensors."""
    return gguf(
        [
            kv("general.architecture", STR, "gpt2"),
            array("tokenizer.ggml.tokens", STR, [f"tok{i}" for i in range(40)]),
            array("tokenizer.ggml.merges", STR, ["t o", "o k"]),
        ]
    )


def bomb() -> bytes:
    """A few bytes that hang `gguf` 0.19.0 (ggml-org/llama.cpp#27188): an array that announces 2^62
    items and has none.
    """
    return gguf([text("a") + struct.pack("<IIQ", ARR, U8, 2**62)])


def safetensors(header: dict[str, Any] | bytes | str, data: bytes = b"", pad: int = 0) -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    raw += b" " * pad
    return struct.pack("<Q", len(raw)) + raw + data


def checkpoint() -> bytes:
    """A shard with metadata, several dtypes, a scalar and an empty tensor."""
    header = {
        "__metadata__": {"format": "pt", "é": 'quote " and \\ slash'},
        "model.embed.weight": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]},
        "model.norm.weight": {"dtype": "F32", "shape": [8], "data_offsets": [64, 96]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [96, 104]},
        "empty": {"dtype": "F16", "shape": [0, 5], "data_offsets": [104, 104]},
    }
    return safetensors(header, bytes(104), pad=3)
