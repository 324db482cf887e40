"""Lay out a GGUF file: every byte that is not tensor data. A float file made from a checkpoint
looks as upstream's converter leaves it, any other as `llama-quantize` does: that one sorts tensors
and moves the two keys that it sets to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf import GGUFValueType

from boardfit.converters.formats.gguf.assign import TypedTensor, as_converter, assign_types
from boardfit.converters.gguf_packing import (
    DEFAULT_ALIGNMENT,
    TensorEntry,
    pack_header,
    pack_infos,
    pack_metadata,
)
from boardfit.converters.spec import KeyValue, ModelSpec
from boardfit.edge.errors import InputError

if TYPE_CHECKING:
    from boardfit.converters.formats.gguf.imatrix import Imatrix
    from boardfit.converters.formats.gguf.recipe import GgufRecipe

_VERSION_OF_QUANTS = 2  # GGML_QNT_VERSION in ggml.h
# Written by us, or meaningless in a single file.
_OWN_KEYS = {
    "general.quantization_version", "general.file_type",
    "split.no", "split.count", "split.tensors.count",
    "quantize.imatrix.file", "quantize.imatrix.dataset",
    "quantize.imatrix.entries_count", "quantize.imatrix.chunks_count",
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
    recipe: GgufRecipe,
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
            TensorEntry(
                entry.tensor.name, _dims(spec, recipe, entry.tensor.shape), entry.type, entry.nbytes
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


def artifact_bytes(spec: ModelSpec, recipe: GgufRecipe, *, imatrix: Imatrix | None = None) -> int:
    """Bytes of the GGUF file that `write_gguf` makes, header and padding included. Exact."""
    typed = assign_types(spec, recipe, has_imatrix=imatrix is not None)
    return file_layout(spec, recipe, typed, imatrix).nbytes


def _dims(spec: ModelSpec, recipe: GgufRecipe, shape: Sequence[int]) -> tuple[int, ...]:
    """The converter writes a shape as it is; llama-quantize drops trailing dimensions of one."""
    dims = tuple(reversed(shape)) or (1,)
    if not as_converter(spec, recipe):
        while len(dims) > 1 and dims[-1] == 1:
            dims = dims[:-1]
    return dims


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
