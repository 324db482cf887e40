"""The keys and values of a GGUF header."""

import struct
from collections.abc import Mapping
from typing import Any

from boardfit.edge.files.gguf.header import TYPE_NAMES, GgufArray, GgufValue, KvType
from boardfit.edge.files.gguf.reader import REWRITE, Reader
from boardfit.edge.units import printable

MAX_KEY_BYTES = 65_535  # ggml/docs/gguf.md
MAX_ALIGNMENT = 65_536
DEFAULT_ALIGNMENT = 32

# Ours. The largest vocabularies have 1.5 million array items in all.
MAX_ARRAY_ITEMS = 2**22  # of all arrays together
MAX_STRING_BYTES = 64 * 1024**2

# Strings of an array are decoded in slabs of at most this many items or bytes.
_SLAB_ITEMS = 4096
_SLAB_BYTES = 1024**2

_U64 = struct.Struct("<Q")
_U32_TYPE, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_SCALAR_FORMATS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_SCALARS = {type_id: struct.Struct(f"<{code}") for type_id, code in _SCALAR_FORMATS.items()}


def read_metadata(
    reader: Reader, n_kv: int, *, full: bool
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
            reader.refuse(f"key {printable(key)!r} occurs twice", at, REWRITE)
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


def _read_scalar(reader: Reader, value_type: int, what: str) -> bool | int | float | str:
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


def _read_array_start(reader: Reader, items_left: int, what: str) -> tuple[int, int]:
    """Item type and count, both checked against what is left."""
    at = reader.pos
    item_type = reader.u32(f"the item type of {what}")
    if item_type == _ARRAY:
        reader.refuse(f"{what} is an array of arrays, which GGUF loaders refuse", at)
    if item_type >= len(TYPE_NAMES):
        reader.refuse(f"{what} has items of unknown type {item_type}", at)
    at = reader.pos
    count = reader.u64(f"the number of items of {what}")
    least = 8 if item_type == _STRING else _SCALARS[item_type].size
    if count * least > reader.n_bytes_left:
        reader.refuse(
            f"{what} announces {count} items of at least {least} bytes, "
            f"but only {reader.n_bytes_left} bytes are left",
            at,
        )
    if count > items_left:
        reader.refuse(f"more than {MAX_ARRAY_ITEMS} array items in all", at)
    return item_type, count


def _read_array(
    reader: Reader, item_type: int, count: int, what: str, *, full: bool
) -> GgufArray | list[Any]:
    start = reader.pos
    if item_type == _STRING:
        items: list[Any] = _read_strings(reader, count, what, full=full)
    else:
        items = _read_numbers(reader, item_type, count, what, full=full)
    if full:
        return items
    return GgufArray(TYPE_NAMES[item_type], count, start, reader.pos - start)


def _read_numbers(
    reader: Reader, item_type: int, count: int, what: str, *, full: bool
) -> list[Any]:
    size = _SCALARS[item_type].size
    start = reader.skip(count * size, what)
    if item_type == _BOOL and (rest := reader.data[start : reader.pos].lstrip(b"\0\1")):
        at = reader.pos - len(rest)
        reader.refuse(f"{what} has a bool {rest[0]}, expected 0 or 1", at)
    if not full:
        return []
    return list(struct.unpack_from(f"<{count}{_SCALAR_FORMATS[item_type]}", reader.data, start))


def _read_strings(reader: Reader, count: int, what: str, *, full: bool) -> list[str]:
    """Read `count` strings.

    A file may have 280,000 merges: the strings of a slab are decoded together. A zero byte between
    them keeps one string's broken character from being completed by the next.
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


def _read_slab(reader: Reader, n_items: int, what: str) -> list[bytes]:
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
            reader.refuse(
                f"{what}: a string of {pos - body} bytes, {reader.n_bytes_left - 8} are left"
            )
        pieces.append(data[body:pos])
    reader.pos = pos
    if not pieces:
        reader.skip(8, f"{what}: the length of a string")
    return pieces


def _refuse_text(reader: Reader, pos: int, pieces: list[bytes], what: str) -> None:
    for piece in pieces:
        try:
            piece.decode("utf-8")
        except UnicodeDecodeError as error:
            reader.refuse(f"{what}: not UTF-8 ({error.reason})", pos + 8 + error.start, REWRITE)
        pos += 8 + len(piece)


def check_alignment(
    reader: Reader, kv: Mapping[str, GgufValue], types: Mapping[str, KvType]
) -> int:
    key = "general.alignment"
    if key not in kv:
        return DEFAULT_ALIGNMENT
    value = kv[key]
    if types[key].value_type != _U32_TYPE or not isinstance(value, int):
        reader.refuse(f"{key} must be a u32, got {TYPE_NAMES[types[key].value_type]}")
    if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        reader.refuse(f"{key} is {value}, expected a power of two from 8 to {MAX_ALIGNMENT}")
    return value


# Loaders take the data of these arrays as C arrays of one type (`src/llama-vocab.cpp`); older ones
# do not look whether they are (ggml-org/llama.cpp#26690: out-of-bounds reads).
_VOCABULARY_TYPES = {
    "tokenizer.ggml.tokens": ("str",),
    "tokenizer.ggml.merges": ("str",),
    "tokenizer.ggml.scores": ("f32", "i32"),
    "tokenizer.ggml.token_type": ("i32",),
    "tokenizer.ggml.suppress_tokens": ("i32",),
    "tokenizer.ggml.precompiled_charsmap": ("u8", "i8"),
}


def check_vocabulary(
    reader: Reader, kv: Mapping[str, GgufValue], types: Mapping[str, KvType]
) -> None:
    lengths: dict[str, int] = {}
    for key, expected in _VOCABULARY_TYPES.items():
        value = kv.get(key)
        if value is None:
            continue
        item_type = types[key].item_type
        got = "no array" if item_type is None else TYPE_NAMES[item_type]
        if got not in expected or not isinstance(value, (GgufArray, list)):
            reader.refuse(f"{key} must be an array of {' or '.join(expected)}, got {got}")
        lengths[key] = len(value)
    n_tokens = lengths.get("tokenizer.ggml.tokens", 0)
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        if lengths.get(key, n_tokens) < n_tokens:
            reader.refuse(f"{key} has {lengths[key]} items for {n_tokens} tokens")
