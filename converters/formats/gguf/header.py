"""The GGUF header and layout: every byte of the file that is not tensor data, known beforehand.

Format: `docs/gguf.md` of ggml, version 3, little-endian:

    magic, version, n_tensors, n_kv | metadata | tensor infos | padding | tensor data, each padded

A float file made from a checkpoint looks as upstream's converter leaves it, any other as
`llama-quantize` does: that one sorts tensors and moves the two keys that it sets to the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from gguf import GGUFValueType

from boardfit.converters.formats.gguf.assign import TypedTensor, as_converter
from boardfit.converters.spec import KeyValue, ModelSpec
from boardfit.edge.errors import InputError
from boardfit.edge.files.ggml_types import GGML_TYPES

if TYPE_CHECKING:
    from boardfit.converters.formats.gguf.imatrix import Imatrix
    from boardfit.converters.formats.gguf.recipe import Recipe

_MAGIC = b"GGUF"
_VERSION = 3
_VERSION_OF_QUANTS = 2  # GGML_QNT_VERSION in ggml.h
DEFAULT_ALIGNMENT = 32
# Written by us, or meaningless in a single file.
_OWN_KEYS = {
    "general.quantization_version", "general.file_type",
    "split.no", "split.count", "split.tensors.count",
    "quantize.imatrix.file", "quantize.imatrix.dataset",
    "quantize.imatrix.entries_count", "quantize.imatrix.chunks_count",
}  # fmt: skip

_FORMATS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f", GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}  # fmt: skip


@dataclass(frozen=True)
class FileLayout:
    """Where everything of one artifact lies. `offsets[i]` is the absolute file offset of
    `tensors[i]`; between a tensor's end and the next multiple of `alignment` there are zeros.
    """

    header: bytes
    tensors: tuple[TypedTensor, ...]
    offsets: tuple[int, ...]
    alignment: int
    nbytes: int

    def padding(self, index: int) -> int:
        """Zero bytes behind tensor `index`."""
        return -self.tensors[index].nbytes % self.alignment


def file_layout(
    spec: ModelSpec,
    recipe: Recipe,
    tensors: Sequence[TypedTensor],
    imatrix: Imatrix | None = None,
) -> FileLayout:
    """Header and offsets of the file that holds `tensors` in this order. An imatrix is named in
    the metadata, as `llama-quantize` does.

    Raises InputError for metadata that GGUF cannot hold, or a tensor name that appears twice.
    """
    alignment = _alignment(spec)
    infos, relative = pack_infos(
        (
            TensorInfo(
                entry.tensor.name,
                _dims(spec, recipe, entry.tensor.shape),
                entry.type,
                entry.nbytes,
            )
            for entry in tensors
        ),
        alignment,
    )
    version = KeyValue("general.quantization_version", _VERSION_OF_QUANTS, GGUFValueType.UINT32)
    file_type = KeyValue("general.file_type", recipe.file_type, GGUFValueType.UINT32)
    before, after = _packed_metadata(spec.metadata)
    if as_converter(spec, recipe):
        own: tuple[KeyValue, ...] = (file_type, version)
        metadata = before + pack_metadata(own) + after
    else:
        own = (version, file_type)
        if imatrix is not None and recipe.is_quantized:
            own += imatrix.metadata()
        metadata = before + after + pack_metadata(own)
    n_kv = sum(kv.key not in _OWN_KEYS for kv in spec.metadata) + len(own)
    header = pack_header(n_kv, metadata, len(tensors), infos, alignment)
    offsets = tuple(len(header) + offset for offset in relative)
    end = offsets[-1] + tensors[-1].nbytes if tensors else len(header)
    return FileLayout(header, tuple(tensors), offsets, alignment, end + -end % alignment)


def _dims(spec: ModelSpec, recipe: Recipe, shape: Sequence[int]) -> tuple[int, ...]:
    """The converter writes a shape as it is; llama-quantize drops trailing dimensions of one."""
    dims = tuple(reversed(shape)) or (1,)
    if not as_converter(spec, recipe):
        while len(dims) > 1 and dims[-1] == 1:
            dims = dims[:-1]
    return dims


@dataclass(frozen=True)
class TensorInfo:
    """One entry of the tensor table; `dims` in ggml's order, the row length first."""

    name: str
    dims: tuple[int, ...]
    type: str
    nbytes: int


def pack_infos(infos: Iterable[TensorInfo], alignment: int) -> tuple[bytes, list[int]]:
    """The tensor table, and each tensor's offset within the data section.

    Raises InputError for a name that appears twice.
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


def _alignment(spec: ModelSpec) -> int:
    value = spec.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or value < 8 or value & (value - 1):
        raise InputError(f"general.alignment must be a power of two of at least 8, got {value!r}")
    return value


# The last metadata packed. A vocabulary of 150,000 tokens takes tenths of a second to pack, and the
# planner asks for the size of every recipe of one model in a row.
_last: tuple[tuple[KeyValue, ...], tuple[bytes, bytes]] | None = None


def _packed_metadata(metadata: tuple[KeyValue, ...]) -> tuple[bytes, bytes]:
    """All but our own keys: those before the tokenizer's, and the tokenizer's with what follows."""
    global _last
    last = _last
    if last is None or last[0] is not metadata:
        _refuse_duplicates(metadata)
        kept = [kv for kv in metadata if kv.key not in _OWN_KEYS]
        split = next((i for i, kv in enumerate(kept) if kv.key.startswith("tokenizer.")), len(kept))
        last = metadata, (pack_metadata(kept[:split]), pack_metadata(kept[split:]))
        _last = last
    return last[1]


def _refuse_duplicates(metadata: Sequence[KeyValue]) -> None:
    keys = set[str]()
    for kv in metadata:
        if kv.key in keys:
            raise InputError(f"metadata key {kv.key!r} appears twice")
        keys.add(kv.key)


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
