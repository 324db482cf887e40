"""Upstream's two imatrix file formats, read as the untrusted input that they are.

GGUF (`tools/imatrix/imatrix.cpp`, save_imatrix): `general.type` = `imatrix`, two float32 tensors
for each matrix, `<name>.in_sum2` (sums of squares) and `<name>.counts`. The older `.dat`
(save_imatrix_legacy): a count of entries, then for each a name, a number of calls and float32
values; at the end the number of chunks and the name of the text, both optional.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from boardfit.converters.formats.gguf.imatrix import Imatrix, Sums
from boardfit.converters.gguf_packing import DEFAULT_ALIGNMENT, TensorEntry, pack_header, pack_infos
from boardfit.converters.gguf_packing import pack_metadata as _pack_metadata
from boardfit.converters.spec import KeyValue
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.errors import InputError
from boardfit.edge.files.gguf import read_header
from boardfit.edge.files.kind import open_regular
from boardfit.edge.units import printable

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT = "imatrix.datasets", "imatrix.chunk_count"
_CHUNK_SIZE = "imatrix.chunk_size"
_MAX_BYTES = 4 * 1024**3
_MAX_NAME_BYTES = 256
_MAX_ENTRIES = 65_536


def read_imatrix(path: Path) -> Imatrix:
    """An imatrix in either format, ready for the quantizers. Raises InputError for a file that is
    neither, is cut short, or holds NaN, infinity or negative sums.
    """
    file, size = open_regular(path)
    with file:
        if size > _MAX_BYTES:
            raise InputError(f"imatrix {path} has {size} bytes; the limit is {_MAX_BYTES}")
        data = file.read(4)
        if data != b"GGUF":
            return _parse_legacy(path, data + file.read(size))
    return _read_gguf(path)


def _read_gguf(path: Path) -> Imatrix:
    header = read_header(path, arrays="full")
    if header.get("general.type") != "imatrix":
        raise InputError(
            f"{path} is a GGUF file, but not an imatrix (general.type is "
            f"{header.get('general.type')!r})"
        )
    arrays = {}
    with path.open("rb") as file:
        for tensor in header.tensors:
            if tensor.type_name != "F32":
                raise InputError(
                    f"imatrix {path}: {tensor.name} is {tensor.type_name}, expected F32"
                )
            file.seek(header.data_offset + tensor.offset)
            arrays[tensor.name] = np.frombuffer(file.read(tensor.nbytes), "<f4")
    entries = {}
    for name in sorted(key.removesuffix(_SUMS) for key in arrays if key.endswith(_SUMS)):
        sums, counts = arrays[name + _SUMS], arrays.get(name + _COUNTS)
        if counts is None or not counts.size or sums.size % counts.size:
            raise InputError(f"imatrix {path}: {name} has sums, but no counts that fit them")
        _check_values(path, name, sums)
        _check_values(path, name, counts)
        if counts.max() >= 2**53:
            raise InputError(f"imatrix {path}: {name} counts {counts.max():.3g} rows")
        values = sums.reshape(counts.size, -1)
        entries[name] = Sums(
            values, np.rint(counts.astype(np.float64)).astype(np.int64)
        ).compute_means()
    if not entries:
        raise InputError(f"imatrix {path} holds no entries")
    datasets = header.get(_DATASETS)
    return Imatrix(
        entries,
        path.name,
        tuple(str(d) for d in datasets) if isinstance(datasets, list) else (),
        header.integer(_CHUNK_COUNT) or 0,
    )


def _parse_legacy(path: Path, data: bytes) -> Imatrix:
    position = 0

    def take(n: int) -> bytes:
        nonlocal position
        if n < 0 or n > len(data) - position:
            raise InputError(
                f"{path} is not an imatrix, or is cut short: {n} bytes expected at byte {position} "
                f"of {len(data)}"
            )
        position += n
        return data[position - n : position]

    def integer() -> int:
        return int(struct.unpack("<i", take(4))[0])

    n_entries = integer()
    if not 0 < n_entries <= _MAX_ENTRIES:
        raise InputError(f"{path} is not an imatrix: it would hold {n_entries} entries")
    entries: dict[str, np.ndarray] = {}
    for _ in range(n_entries):
        length = integer()
        if not 0 < length <= _MAX_NAME_BYTES:
            raise InputError(f"{path} is not an imatrix: a tensor name of {length} bytes")
        name = take(length).decode("utf-8", "replace")
        n_calls, n_values = integer(), integer()
        if n_calls < 0 or n_values < 1:
            raise InputError(
                f"imatrix {path}: {printable(name)} has {n_values} values over {n_calls} calls"
            )
        values = np.frombuffer(take(4 * n_values), "<f4")
        _check_values(path, name, values)
        entries[name] = values / np.float32(n_calls) if n_calls else values.copy()
    n_chunks = 0
    datasets: tuple[str, ...] = ()
    if len(data) - position >= 8:
        n_chunks, length = integer(), integer()
        datasets = (take(length).decode("utf-8", "replace"),) if length > 0 else ()
    return Imatrix(entries, path.name, datasets, max(0, n_chunks))


def _check_values(path: Path, name: str, values: np.ndarray) -> None:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0:
        raise InputError(
            f"imatrix {path}: {printable(name)} holds NaN, infinity or negative sums",
            next_step="Compute it again: edge imatrix --help",
        )


def write_imatrix(
    path: Path, sums: Mapping[str, Sums], *, datasets: Sequence[str], n_chunks: int, chunk_size: int
) -> None:
    """Write sums in upstream's GGUF layout, byte for byte what `llama-imatrix` would write."""
    metadata = (
        KeyValue("general.type", "imatrix", GGUFValueType.STRING),
        KeyValue(_DATASETS, list(datasets), GGUFValueType.ARRAY, GGUFValueType.STRING),
        KeyValue(_CHUNK_COUNT, n_chunks, GGUFValueType.UINT32),
        KeyValue(_CHUNK_SIZE, chunk_size, GGUFValueType.UINT32),
    )
    infos, arrays = [], []
    for name in sorted(sums, key=str.encode):
        entry = sums[name]
        n = len(entry.counts)
        for suffix, array, columns in (
            (_SUMS, entry.values, entry.values.size // n),
            (_COUNTS, entry.counts, 1),
        ):
            array = np.ascontiguousarray(array, "<f4")
            dims = (columns, n) if n > 1 else (columns,)
            infos.append(TensorEntry(name + suffix, dims, "F32", array.nbytes))
            arrays.append(array.tobytes() + bytes(-array.nbytes % DEFAULT_ALIGNMENT))
    table, _ = pack_infos(infos, DEFAULT_ALIGNMENT)
    header = pack_header(len(metadata), _pack_metadata(metadata), len(infos), table)
    write_atomic(path, header + b"".join(arrays))
