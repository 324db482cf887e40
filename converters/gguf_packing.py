"""Pack metadata and the tensor table of a GGUF file into bytes.

Format: `docs/gguf.md` of ggml, version 3, little-endian:

    magic, version, n_tensors, n_kv | metadata | tensor infos | padding | tensor data, each padded
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from gguf import GGUFValueType

from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import InputError
from boardfit.edge.files.ggml_types import GGML_TYPES

_MAGIC = b"GGUF"
_VERSION = 3
DEFAULT_ALIGNMENT = 32

_FORMATS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f", GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One entry of the tensor table; `dims` in ggml's order, the row length first."""

    name: str
    dims: tuple[int, ...]
    type: str
    nbytes: int


def pack_infos(infos: Iterable[TensorEntry], alignment: int) -> tuple[bytes, list[int]]:
    """The tensor table, and each tensor's offset within the data section. Raises InputError for a
    name that appears twice.
    """
    parts, offsets, offset, names = [], [], 0, set[str]()
    for info in infos:
        if info.name in names:
            raise InputError(f"two tensors are named {info.name!r}; a GGUF file holds one of each")
        names.add(info.name)
        rank = len(info.dims)
        parts.append(_pack_string(info.name))
        parts.append(
            struct.pack(f"<I{rank}QIQ", rank, *info.dims, GGML_TYPES[info.type].id, offset)
        )
        offsets.append(offset)
        offset += info.nbytes + -info.nbytes % alignment
    return b"".join(parts), offsets


def pack_header(
    n_kv: int, metadata: bytes, n_tensors: int, infos: bytes, alignment: int = DEFAULT_ALIGNMENT
) -> bytes:
    """Everything in front of the tensor data, padding included."""
    header = _MAGIC + struct.pack("<IQQ", _VERSION, n_tensors, n_kv) + metadata + infos
    return header + bytes(-len(header) % alignment)


def pack_metadata(metadata: Iterable[KeyValue]) -> bytes:
    """Metadata entries as GGUF bytes. Raises InputError naming the key that cannot be stored."""
    parts = []
    for kv in metadata:
        parts.append(_pack_string(kv.key))
        try:
            parts.append(_pack_value(kv))
        except (struct.error, TypeError, UnicodeEncodeError, KeyError) as error:
            raise InputError(
                f"metadata key {kv.key!r}: cannot be stored as {kv.value_type.name}: {error}"
            ) from None
    return b"".join(parts)


def _pack_value(kv: KeyValue) -> bytes:
    if kv.value_type is not GGUFValueType.ARRAY:
        head = struct.pack("<I", kv.value_type)
        if kv.value_type is GGUFValueType.STRING:
            return head + _pack_string(kv.value)
        return head + struct.pack("<" + _FORMATS[kv.value_type], kv.value)
    if kv.item_type is None or kv.item_type is GGUFValueType.ARRAY:
        raise InputError(f"metadata key {kv.key!r}: an array of {kv.item_type} cannot be stored")
    head = struct.pack("<IIQ", kv.value_type, kv.item_type, len(kv.value))
    if kv.item_type is GGUFValueType.STRING:
        return head + _pack_strings(kv.value)
    return head + struct.pack(f"<{len(kv.value)}{_FORMATS[kv.item_type]}", *kv.value)


def _pack_string(text: Any) -> bytes:
    data = _encode(text)
    return struct.pack("<Q", len(data)) + data


def _pack_strings(texts: Sequence[Any]) -> bytes:
    try:
        encoded = list(map(str.encode, texts))  # a quarter of a second less for a large vocabulary
    except (TypeError, UnicodeEncodeError):
        encoded = [_encode(text) for text in texts]
    lengths = struct.pack(f"<{len(encoded)}Q", *map(len, encoded))
    starts = [lengths[i : i + 8] for i in range(0, len(lengths), 8)]
    return b"".join(chain.from_iterable(zip(starts, encoded, strict=True)))


def _encode(text: Any) -> bytes:
    """UTF-8; bytes that were not valid text in a source GGUF come back as they were."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
