"""Read and check a GGUF header before any native loader, or the `gguf` package, sees the file.

Nothing but the header is touched, never the tensor data; nothing that the file says is believed
before it was checked against the bytes that are there. Every number is bounded by the file's size
and by the limits below, so that time and memory are bounded by the header's own bytes: a 43-byte
file that promises 2^60 strings is refused as fast as any other.

    header = read_header(Path("model.gguf"))
    header.arch, header.get("llama.context_length"), header.tensors[0].type_name

The rules are those of upstream's loader (`ggml/src/gguf.cpp`) and of the format's description
(`ggml/docs/gguf.md`), or stricter: a file that passes here is one that the loader accepts.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from edge.errors import InputError, UnsafeInputError, UnsupportedModelError
from edge.filekind import HEAD_BYTES, foreign, open_regular
from edge.ggml_types import GGML_TYPE_NAMES, GGML_TYPES, REMOVED_TYPES, GgmlType, row_bytes
from edge.units import printable

__all__ = [
    "GGML_TYPES",
    "GgmlType",
    "GgufArray",
    "GgufHeader",
    "GgufTensor",
    "GgufValue",
    "KvType",
    "parse_header",
    "read_header",
    "row_bytes",
]

# Upstream's own limits (gguf.cpp, ggml.h, gguf.md).
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63  # GGML_MAX_NAME is 64 with the terminating zero
MAX_DIMS = 4
MAX_ALIGNMENT = 65_536
DEFAULT_ALIGNMENT = 32

# Ours: far above any real file, and low enough that a hostile one cannot cost a board its memory.
# The largest real headers have 2,000 tensors, 100 keys, 1.5 million array items and 20 MB.
MAX_HEADER_BYTES = 128 * 1024**2
MAX_TENSORS = 65_536
MAX_KEYS = 65_536
MAX_ARRAY_ITEMS = 2**22  # of all arrays together
MAX_STRING_BYTES = 64 * 1024**2

# Strings of an array are decoded in slabs of so many items or bytes, whichever is reached first.
_SLAB_ITEMS = 4096
_SLAB_BYTES = 1024**2

_INT64_MAX = 2**63 - 1
_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # key length, key, value type, smallest value
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # name length, n_dims, one dim, type, offset

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_BOOL, _STRING, _ARRAY = 7, 8, 9
_TYPE_NAMES = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64",
)  # fmt: skip
_SCALAR_FORMATS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_SCALARS = {type_id: struct.Struct(f"<{code}") for type_id, code in _SCALAR_FORMATS.items()}

ArrayMode = Literal["summary", "full"]


@dataclass(frozen=True)
class GgufArray:
    """An array that was checked and skipped: `len()` is its number of items; `offset` and `nbytes`
    say where its items lie in the file. `arrays="full"` gives a list in its place.
    """

    item_type: str
    count: int
    offset: int
    nbytes: int

    def __len__(self) -> int:
        return self.count


GgufValue: TypeAlias = "bool | int | float | str | GgufArray | list[Any]"


class KvType(NamedTuple):
    """GGUF value type ids of one entry, as `gguf.GGUFValueType` numbers them; `item_type` is set
    for arrays only.
    """

    value_type: int
    item_type: int | None = None


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. `dims` is in ggml's order: `dims[0]` (ne[0]) is the row length. `offset` counts
    from the header's `data_offset`.
    """

    name: str
    dims: tuple[int, ...]
    type_name: str
    type_id: int
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        count = 1
        for dim in self.dims:
            count *= dim
        return count


@dataclass(frozen=True)
class GgufHeader:
    """A checked header. `kv` and `kv_types` are in file order. `trailing_bytes` lie behind the last
    tensor's padding: harmless, and said in `notes`.
    """

    version: int
    alignment: int
    kv: Mapping[str, GgufValue]
    kv_types: Mapping[str, KvType]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    file_size: int
    trailing_bytes: int = 0
    notes: tuple[str, ...] = ()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of one key, or `default`."""
        return self.kv.get(key, default)

    def text(self, key: str) -> str | None:
        """A string value, or None if the key is absent. Raises InputError for any other type."""
        value = self.kv.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"GGUF key {key!r}: expected a string, got {self._type_of(key)}")
        return value

    def integer(self, key: str) -> int | None:
        """An integer value, or None if the key is absent. Raises InputError for any other type."""
        value = self.kv.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"GGUF key {key!r}: expected an integer, got {self._type_of(key)}")
        return value

    @property
    def arch(self) -> str:
        """`general.architecture`. Raises InputError if the file has none."""
        arch = self.text("general.architecture")
        if not arch:
            raise InputError(
                "the GGUF file names no architecture (key general.architecture): "
                "it is not a language model, or was written by a broken tool"
            )
        return arch

    @property
    def split_count(self) -> int:
        """Number of files that the model is split into; 1 for a whole model."""
        return max(1, self.integer("split.count") or 1)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, padding not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def _type_of(self, key: str) -> str:
        return _TYPE_NAMES[self.kv_types[key].value_type]


def read_header(path: Path | str, *, arrays: ArrayMode = "summary") -> GgufHeader:
    """Check the header of the GGUF file at `path` and return what it says.

    `arrays="summary"` checks arrays and returns a `GgufArray` for each; `"full"` returns lists.
    Both accept the same files. Raises InputError for what is not a GGUF file that we read (missing,
    an HTML page, an old version, truncated) and UnsafeInputError for a header that contradicts
    itself or the file, with the reason and the byte offset.
    """
    path = Path(path)
    file, file_size = open_regular(path)
    with file:
        # Only the part that a header may take is mapped: enough for a 32-bit system too.
        length = min(file_size, MAX_HEADER_BYTES)
        try:
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
        with mapped:
            return parse_header(mapped, file_size=file_size, name=str(path), arrays=arrays)


def parse_header(
    data: bytes | mmap.mmap, *, file_size: int, name: str, arrays: ArrayMode = "summary"
) -> GgufHeader:
    """`read_header` for bytes in memory: `data` is the beginning of a file of `file_size` bytes,
    `name` is what errors call it.
    """
    reader = _Reader(data, file_size, name)
    version = _read_preamble(reader)
    n_tensors, n_kv = _read_counts(reader)
    kv, kv_types = _read_metadata(reader, n_kv, full=arrays == "full")
    alignment = _alignment(reader, kv, kv_types)
    tensors = tuple(_read_tensors(reader, n_tensors))
    data_offset = _padded(reader.pos, alignment) if tensors else reader.pos
    data_end = _check_extents(reader, tensors, data_offset, alignment)
    trailing = max(0, file_size - _padded(data_end, alignment)) if tensors else 0
    return GgufHeader(
        version=version,
        alignment=alignment,
        kv=kv,
        kv_types=kv_types,
        tensors=tensors,
        data_offset=data_offset,
        file_size=file_size,
        trailing_bytes=trailing,
        notes=(f"{trailing} bytes behind the last tensor are ignored",) if trailing else (),
    )


class _Reader:
    """A position in the header's bytes that cannot leave them."""

    def __init__(self, data: bytes | mmap.mmap, file_size: int, name: str) -> None:
        self.data = data
        self.end = min(len(data), file_size, MAX_HEADER_BYTES)
        self.file_size = file_size
        self.name = printable(name)
        self.pos = 0

    @property
    def left(self) -> int:
        return self.end - self.pos

    def refuse(self, reason: str, at: int | None = None) -> NoReturn:
        offset = self.pos if at is None else at
        raise UnsafeInputError(
            f"{self.name}: refused GGUF header at byte {offset}: {reason}",
            next_step="Download or convert the file again; do not load it elsewhere either.",
        )

    def skip(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes`; returns where they began."""
        start = self.pos
        if n_bytes > self.end - start:
            self.refuse(f"{what} takes {n_bytes} bytes, {self._left_words()}")
        self.pos = start + n_bytes
        return start

    def _left_words(self) -> str:
        if self.end < self.file_size:
            return f"but a header may have at most {MAX_HEADER_BYTES} bytes"
        return f"but only {self.left} are left in the file (truncated or damaged)"

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.skip(8, what))[0])

    def string(self, limit: int, what: str) -> str:
        """A length-prefixed UTF-8 string of at most `limit` bytes."""
        start = self.pos
        n_bytes = self.u64(f"the length of {what}")
        if n_bytes > limit:
            self.refuse(f"{what} has {n_bytes} bytes, the limit is {limit}", start)
        begin = self.skip(n_bytes, what)
        try:
            return self.data[begin : self.pos].decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(f"{what} is not UTF-8 ({error.reason})", begin + error.start)


# ---- magic, version, counts -------------------------------------------------------------------


def _read_preamble(reader: _Reader) -> int:
    """Check magic and version; returns the version."""
    head = bytes(reader.data[:HEAD_BYTES])
    if not head.startswith(b"GGUF"):
        kind = foreign(head)
        if kind:
            raise InputError(
                f"{reader.name}: expected a GGUF file, got {kind.name}", next_step=kind.next_step
            )
        raise InputError(
            f"{reader.name}: expected a GGUF file, which begins with {b'GGUF'!r}, got {head[:8]!r}",
            next_step="Check that this is the right file, and that its download is complete.",
        )
    reader.skip(4, "the magic")
    version = reader.u32("the version")
    if version in (2, 3):
        return version
    if version and version & 0xFFFF == 0:
        raise UnsupportedModelError(
            f"{reader.name}: a big-endian GGUF file; only little-endian ones are read",
            next_step="Convert it on its own machine with upstream's gguf_convert_endian.py.",
        )
    raise UnsupportedModelError(
        f"{reader.name}: GGUF version {version}; versions 2 and 3 are read",
        next_step="Convert the original checkpoint again with a current tool.",
    )


def _read_counts(reader: _Reader) -> tuple[int, int]:
    counts = []
    for what, least, limit in (
        ("tensors", _MIN_TENSOR_BYTES, MAX_TENSORS),
        ("keys", _MIN_KEY_BYTES, MAX_KEYS),
    ):
        at = reader.pos
        count = reader.u64(f"the number of {what}")
        if count * least > reader.left:
            reader.refuse(
                f"{count} {what} announced, but the {reader.left} bytes left hold at most "
                f"{reader.left // least}",
                at,
            )
        if count > limit:
            reader.refuse(f"{count} {what} announced, the limit is {limit}", at)
        counts.append(count)
    return counts[0], counts[1]


# ---- metadata ---------------------------------------------------------------------------------


def _read_metadata(
    reader: _Reader, n_kv: int, *, full: bool
) -> tuple[dict[str, GgufValue], dict[str, KvType]]:
    kv: dict[str, GgufValue] = {}
    types: dict[str, KvType] = {}
    items_left = MAX_ARRAY_ITEMS
    for index in range(n_kv):
        at = reader.pos
        key = reader.string(MAX_KEY_BYTES, f"key {index}")
        if not key or "\0" in key:
            reader.refuse(f"key {index} is empty or contains a zero byte", at)
        if key in kv:
            reader.refuse(f"key {printable(key)!r} occurs twice", at)
        what = f"the value of {printable(key, 80)!r}"
        value_type = reader.u32(f"the type of {what}")
        item_type = None
        if value_type == _ARRAY:
            item_type, count = _read_array_start(reader, items_left, what)
            items_left -= count
            kv[key] = _read_array(reader, item_type, count, what, full=full)
        else:
            kv[key] = _read_scalar(reader, value_type, what)
        types[key] = KvType(value_type, item_type)
    return kv, types


def _read_scalar(reader: _Reader, value_type: int, what: str) -> bool | int | float | str:
    if value_type == _STRING:
        return reader.string(MAX_STRING_BYTES, what)
    scalar = _SCALARS.get(value_type)
    if scalar is None:
        reader.refuse(f"{what} has unknown type {value_type}", reader.pos - 4)
    start = reader.skip(scalar.size, what)
    if value_type == _BOOL and reader.data[start] > 1:
        reader.refuse(f"{what} is bool {reader.data[start]}, expected 0 or 1", start)
    value: bool | int | float = scalar.unpack_from(reader.data, start)[0]
    return value


def _read_array_start(reader: _Reader, items_left: int, what: str) -> tuple[int, int]:
    """Item type and count, both checked against what is left."""
    at = reader.pos
    item_type = reader.u32(f"the item type of {what}")
    if item_type == _ARRAY:
        reader.refuse(f"{what} is an array of arrays, which GGUF loaders refuse", at)
    if item_type >= len(_TYPE_NAMES):
        reader.refuse(f"{what} has items of unknown type {item_type}", at)
    at = reader.pos
    count = reader.u64(f"the number of items of {what}")
    least = 8 if item_type == _STRING else _SCALARS[item_type].size
    if count * least > reader.left:
        reader.refuse(
            f"{what} announces {count} items of at least {least} bytes, "
            f"but only {reader.left} bytes are left",
            at,
        )
    if count > items_left:
        reader.refuse(f"more than {MAX_ARRAY_ITEMS} array items in all", at)
    return item_type, count


def _read_array(
    reader: _Reader, item_type: int, count: int, what: str, *, full: bool
) -> GgufArray | list[Any]:
    start = reader.pos
    if item_type == _STRING:
        items: list[Any] = _read_strings(reader, count, what, full=full)
    else:
        items = _read_numbers(reader, item_type, count, what, full=full)
    if full:
        return items
    return GgufArray(_TYPE_NAMES[item_type], count, start, reader.pos - start)


def _read_numbers(
    reader: _Reader, item_type: int, count: int, what: str, *, full: bool
) -> list[Any]:
    size = _SCALARS[item_type].size
    start = reader.skip(count * size, what)
    if item_type == _BOOL and reader.data[start : reader.pos].strip(b"\0\1"):
        _refuse_bool(reader, start, what)
    if not full:
        return []
    return list(struct.unpack_from(f"<{count}{_SCALAR_FORMATS[item_type]}", reader.data, start))


def _refuse_bool(reader: _Reader, start: int, what: str) -> None:
    for at in range(start, reader.pos):
        if reader.data[at] > 1:
            reader.refuse(f"{what} has a bool {reader.data[at]}, expected 0 or 1", at)


def _read_strings(reader: _Reader, count: int, what: str, *, full: bool) -> list[str]:
    """Walk `count` strings, 280,000 merges in well under 0.1 s: the inner loop is kept bare, and
    the strings of a slab are decoded together. A zero byte between them keeps one string's broken
    character from being completed by the next.
    """
    strings: list[str] = []
    done = 0
    while done < count:
        begin = reader.pos
        pieces = _read_slab(reader, min(_SLAB_ITEMS, count - done), f"{what}, from item {done}")
        try:
            b"\0".join(pieces).decode("utf-8")
        except UnicodeDecodeError:
            _refuse_text(reader, begin, pieces, f"{what}, from item {done}")
        if full:
            strings.extend([piece.decode("utf-8") for piece in pieces])
        done += len(pieces)
    return strings


def _read_slab(reader: _Reader, n_items: int, what: str) -> list[bytes]:
    """At most `n_items` strings as bytes; fewer once they add up to `_SLAB_BYTES`."""
    data, end, pos, unpack = reader.data, reader.end, reader.pos, _U64.unpack_from
    stop = min(end - 8, pos + _SLAB_BYTES)
    pieces: list[bytes] = []
    for _ in range(n_items):
        if pos > stop:
            break
        body = pos + 8
        pos = body + unpack(data, pos)[0]
        if pos > end:
            reader.pos = body - 8
            reader.refuse(f"{what}: a string of {pos - body} bytes, {reader.left - 8} are left")
        pieces.append(data[body:pos])
    reader.pos = pos
    if not pieces:
        reader.skip(8, f"{what}: the length of a string")
    return pieces


def _refuse_text(reader: _Reader, pos: int, pieces: list[bytes], what: str) -> None:
    for piece in pieces:
        try:
            piece.decode("utf-8")
        except UnicodeDecodeError as error:
            reader.refuse(f"{what}: not UTF-8 ({error.reason})", pos + 8 + error.start)
        pos += 8 + len(piece)


def _alignment(reader: _Reader, kv: Mapping[str, GgufValue], types: Mapping[str, KvType]) -> int:
    key = "general.alignment"
    if key not in kv:
        return DEFAULT_ALIGNMENT
    value = kv[key]
    if types[key].value_type != 4 or not isinstance(value, int):
        reader.refuse(f"{key} must be a u32, got {_TYPE_NAMES[types[key].value_type]}")
    if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        reader.refuse(f"{key} is {value}, expected a power of two from 8 to {MAX_ALIGNMENT}")
    return value


# ---- tensors ----------------------------------------------------------------------------------


def _read_tensors(reader: _Reader, n_tensors: int) -> list[GgufTensor]:
    tensors: list[GgufTensor] = []
    seen: set[str] = set()
    for index in range(n_tensors):
        at = reader.pos
        tensor = _read_tensor(reader, index)
        if tensor.name in seen:
            reader.refuse(f"tensor {printable(tensor.name)!r} occurs twice", at)
        seen.add(tensor.name)
        tensors.append(tensor)
    return tensors


def _read_tensor(reader: _Reader, index: int) -> GgufTensor:
    at = reader.pos
    name = reader.string(MAX_NAME_BYTES, f"the name of tensor {index}")
    if not name or "\0" in name:
        reader.refuse(f"the name of tensor {index} is empty or contains a zero byte", at)
    what = f"tensor {printable(name)!r}"
    dims = _read_dims(reader, what)
    type_id = reader.u32(f"the type of {what}")
    type_name = _type_name(reader, type_id, what)
    nbytes = _tensor_bytes(reader, type_name, dims, what)
    offset = reader.u64(f"the offset of {what}")
    return GgufTensor(name, dims, type_name, type_id, offset, nbytes)


def _read_dims(reader: _Reader, what: str) -> tuple[int, ...]:
    at = reader.pos
    n_dims = reader.u32(f"the number of dimensions of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        reader.refuse(f"{what} has {n_dims} dimensions, expected 1 to {MAX_DIMS}", at)
    start = reader.skip(8 * n_dims, f"the shape of {what}")
    dims = struct.unpack_from(f"<{n_dims}Q", reader.data, start)
    product = 1
    for dim in dims:
        product *= dim
        if not 1 <= dim <= _INT64_MAX or product > _INT64_MAX:
            reader.refuse(f"{what} has an impossible shape {list(dims)}", start)
    return dims


def _type_name(reader: _Reader, type_id: int, what: str) -> str:
    name = GGML_TYPE_NAMES.get(type_id)
    if name is not None:
        return name
    if type_id in REMOVED_TYPES:
        raise UnsupportedModelError(
            f"{reader.name}: {what} has type {REMOVED_TYPES[type_id]}, which ggml removed",
            next_step="Quantize the model again, as Q4_0 or IQ4_NL: engines repack those on load.",
        )
    reader.refuse(f"{what} has unknown ggml type {type_id}", reader.pos - 4)


def _tensor_bytes(reader: _Reader, type_name: str, dims: tuple[int, ...], what: str) -> int:
    _, block_size, type_size = GGML_TYPES[type_name]
    if dims[0] % block_size:
        reader.refuse(f"{what} has rows of {dims[0]}, not a multiple of {block_size} ({type_name})")
    nbytes = type_size
    for dim in (dims[0] // block_size, *dims[1:]):
        nbytes *= dim
    if nbytes > _INT64_MAX - MAX_ALIGNMENT:
        reader.refuse(f"{what} takes {nbytes} bytes, more than any file holds")
    return nbytes


def _padded(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


def _check_extents(
    reader: _Reader, tensors: tuple[GgufTensor, ...], data_offset: int, alignment: int
) -> int:
    """Tensors must lie back to back, each padded to the alignment, inside the file (upstream's
    loader demands the same). Returns the end of the last one.
    """
    expected = end = 0
    for tensor in tensors:
        if tensor.offset != expected:
            reader.refuse(
                f"tensor {printable(tensor.name)!r} has offset {tensor.offset}, expected {expected}"
            )
        end = tensor.offset + tensor.nbytes
        expected = _padded(end, alignment)
    if tensors and data_offset + end > reader.file_size:
        missing = data_offset + end - reader.file_size
        raise InputError(
            f"{reader.name}: truncated: the tensors need {data_offset + end} bytes, "
            f"the file has {reader.file_size} ({missing} missing)",
            next_step="Download or copy the file again; `ls -l` and the source's size must agree.",
        )
    return data_offset + end
