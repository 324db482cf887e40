"""Write a GGUF file that holds a vocabulary and nothing else, so that it can be verified in seconds
before hours of quantizing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gguf import GGUF_MAGIC, GGUF_VERSION, GGUFValueType

from converters.source.spec import KeyValue
from converters.tokenizers import Tokenizer
from edge.atomic import write_atomic
from edge.errors import InputError

_NUMBER_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


def write_vocab_only(tokenizer: Tokenizer, arch: str, path: Path, *, name: str = "vocab") -> None:
    """Write `path` with the tokenizer's metadata and no tensors.

    `name` becomes `general.name`: the engine trims whitespace after special tokens for models
    whose name contains "phi-3", so a vocabulary is verified under the name it will be shipped with.
    """
    identity = [
        KeyValue("general.architecture", arch, GGUFValueType.STRING),
        KeyValue("general.name", name, GGUFValueType.STRING),
    ]
    write_vocab_entries([*identity, *tokenizer.metadata()], path)


def write_vocab_entries(metadata: Iterable[KeyValue], path: Path) -> None:
    """Write the entries of a `ModelSpec.metadata` that make up its vocabulary: architecture, name
    and `tokenizer.*`. The file is written beside, synced and renamed.
    """
    entries = [entry for entry in metadata if _belongs(entry.key)]
    header = struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, 0, len(entries))
    write_atomic(path, header + b"".join(_string(e.key) + _typed(e) for e in entries))


def _belongs(key: str) -> bool:
    return key.startswith("tokenizer.") or key in ("general.architecture", "general.name")


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any, kind: GGUFValueType) -> bytes:
    if kind is GGUFValueType.STRING:
        return _string(value)
    return struct.pack("<" + _NUMBER_FORMATS[kind], value)


def _typed(entry: KeyValue) -> bytes:
    if entry.value_type is not GGUFValueType.ARRAY:
        return struct.pack("<I", entry.value_type) + _value(entry.value, entry.value_type)
    if entry.item_type is None:
        raise InputError(f"metadata {entry.key} is an array without an item type")
    head = struct.pack("<IIQ", entry.value_type, entry.item_type, len(entry.value))
    if entry.item_type is GGUFValueType.STRING:
        return head + b"".join(map(_string, entry.value))
    code = f"<{len(entry.value)}{_NUMBER_FORMATS[entry.item_type]}"
    return head + struct.pack(code, *entry.value)
