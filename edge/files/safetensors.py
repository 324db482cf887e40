"""Read and check a safetensors header, without the `safetensors` package and without tensor data.

A file is: eight bytes N (little-endian), N bytes of JSON, then the tensors' bytes, back to back.
The JSON is read by a parser of exactly this shape (an object of flat entries): nesting, duplicate
keys and memory are bounded. Rules: https://github.com/huggingface/safetensors, "Format".
"""

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.files.kind import HEAD_BYTES, UNPICKLE_ADVICE, foreign, open_regular
from boardfit.edge.units import did_you_mean, printable

# The format's own limit, and ours: the largest checkpoints have a few thousand tensors per shard.
MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 262_144
MAX_METADATA_ENTRIES = 65_536
MAX_NAME_BYTES = 4096
MAX_DIMS = 64

# Bits of one element.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

_INT64_MAX = 2**63 - 1
_SPACE = re.compile(rb"[ \t\r\n]*")
_PLAIN = re.compile(rb'"[\w./ -]*"$')  # a string without escapes, in ASCII: nearly all of them
# Twenty digits hold any 64-bit number; a longer literal is refused before it is converted.
_INTEGER = re.compile(rb"(?:0|[1-9][0-9]{0,19})(?![0-9.eE])")


@dataclass(frozen=True)
class SafetensorsTensor:
    """One tensor: its bytes `[start, end)` count from the header's `data_offset`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class SafetensorsHeader:
    """A checked header. `tensors` is in the order of the data; `data_offset` is where it begins."""

    tensors: Mapping[str, SafetensorsTensor]
    metadata: Mapping[str, str]
    data_offset: int
    file_size: int


def read_header(path: Path | str, *, below: Path | None = None) -> SafetensorsHeader:
    """Check the header of a safetensors file and return its content. `below` is of `open_regular`.

    Raises InputError for what is not a whole safetensors file (a pickle, an HTML page, a truncated
    shard) and UnsafeInputError for a header that contradicts itself or the file.
    """
    path = Path(path)
    file, file_size = open_regular(path, below=below)
    with file:
        try:
            head = file.read(HEAD_BYTES)
            length = _header_length(head, file_size, str(path))
            data = head + file.read(max(0, 8 + length - len(head)))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
    return parse_header(data, file_size=file_size, name=str(path))


def parse_header(data: bytes, *, file_size: int, name: str) -> SafetensorsHeader:
    """`read_header` of the beginning `data` of a file of `file_size` bytes, called `name`."""
    length = _header_length(data, file_size, name)
    parser = _Parser(data, 8, min(8 + length, len(data)), printable(name))
    tensors, metadata = _parse_document(parser)
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_extents(parser, ordered, 8 + length, file_size)
    return SafetensorsHeader(ordered, metadata, 8 + length, file_size)


def _header_length(head: bytes, file_size: int, name: str) -> int:
    """The length of the JSON, checked against the file."""
    name = printable(name)
    length = struct.unpack_from("<Q", head)[0] if len(head) >= 8 else 0
    fits = 2 <= length <= min(MAX_HEADER_BYTES, file_size - 8)
    if fits and head[8:9] == b"{":
        return int(length)
    kind = foreign(head)
    if kind and not kind.name.startswith("a safetensors"):
        raise InputError(
            f"{name}: expected a safetensors file, got {kind.name}", next_step=kind.next_step
        )
    if len(head) < 8:
        raise InputError(f"{name}: expected a safetensors file, got {file_size} bytes in all")
    if head[8:9] == b"{" and length <= MAX_HEADER_BYTES:
        raise InputError(
            f"{name}: truncated: the header alone needs {8 + length} bytes, the file has "
            f"{file_size}",
            next_step="Download or copy the file again.",
        )
    raise UnsafeInputError(
        f"{name}: expected a safetensors file; its first 8 bytes announce a header of {length} "
        f"bytes (at most {MAX_HEADER_BYTES} are allowed, the file has {file_size}) and what "
        f"follows is not one",
        next_step=UNPICKLE_ADVICE if name.endswith((".bin", ".pt", ".pth", ".ckpt")) else None,
    )


class _Parser:
    """Reads the few JSON forms that a safetensors header has, from bytes, without recursion."""

    def __init__(self, data: bytes, pos: int, end: int, name: str) -> None:
        self.data = data
        self.pos = pos
        self.end = end
        self.name = name

    def refuse(self, reason: str, at: int | None = None) -> NoReturn:
        offset = self.pos if at is None else at
        raise UnsafeInputError(
            f"{self.name}: refused safetensors header at byte {offset}: {reason}",
            next_step="Download or convert the file again; do not load it elsewhere either.",
        )

    def peek(self) -> int:
        """Code of the next byte that is no white space; -1 at the end."""
        if self.pos < self.end and self.data[self.pos] > 0x20:
            return self.data[self.pos]
        match = _SPACE.match(self.data, self.pos, self.end)
        assert match is not None  # the pattern matches the empty string
        self.pos = match.end()
        return self.data[self.pos] if self.pos < self.end else -1

    def take(self, expected: str) -> None:
        got = self.peek()
        if got != ord(expected):
            found = "the end" if got < 0 else repr(chr(got))
            self.refuse(f"expected {expected!r}, got {found}")
        self.pos += 1

    def has_more(self, close: str, *, first: bool) -> bool:
        """Whether another item comes before `close`; steps over the comma or `close`."""
        if self.peek() == ord(close):
            self.pos += 1
            return False
        if not first:
            self.take(",")
        return True

    def string(self, limit: int, what: str) -> str:
        if self.peek() != ord('"'):
            self.refuse(f"expected a string ({what})")
        start = self.pos
        stop = self._closing_quote(start, what)
        if stop - start - 2 > limit:
            self.refuse(f"{what} has {stop - start - 2} bytes, the limit is {limit}", start)
        literal = self.data[start:stop]
        self.pos = stop
        if _PLAIN.match(literal):
            return literal[1:-1].decode("ascii")
        try:
            text = json.loads(literal.decode("utf-8"))
            text.encode("utf-8")  # an escape can spell half a surrogate pair
        except ValueError as error:
            self.refuse(f"{what} is not a proper string ({error})", start)
        return str(text)

    def _closing_quote(self, start: int, what: str) -> int:
        """Position behind the quote that ends the string beginning at `start`."""
        quote = self.data.find(b'"', start + 1, self.end)
        if quote > 0 and self.data[quote - 1] != 0x5C:
            return quote + 1
        # Escapes: blank out pairs of backslashes, then escaped quotes, in growing windows, so that
        # a hostile string of nothing else costs time in proportion to its length.
        size = 4096
        while quote > 0:
            window = self.data[start + 1 : min(start + 1 + size, self.end)]
            found = window.replace(b"\\\\", b"__").replace(b'\\"', b"__").find(b'"')
            if found >= 0:
                return start + 1 + found + 1
            if start + 1 + size >= self.end:
                break
            size *= 2
        self.refuse(f"{what} does not end", start)

    def integer(self, what: str) -> int:
        self.peek()
        match = _INTEGER.match(self.data, self.pos, self.end)
        if not match or int(match[0]) > _INT64_MAX:
            self.refuse(f"{what}: expected a whole number from 0 to 2^63 - 1")
        self.pos = match.end()
        return int(match[0])

    def integers(self, limit: int, what: str) -> tuple[int, ...]:
        self.take("[")
        values: list[int] = []
        while self.has_more("]", first=not values):
            if len(values) == limit:
                self.refuse(f"{what} has more than {limit} numbers")
            values.append(self.integer(what))
        return tuple(values)


def _parse_document(parser: _Parser) -> tuple[dict[str, SafetensorsTensor], dict[str, str]]:
    tensors: dict[str, SafetensorsTensor] = {}
    metadata: dict[str, str] | None = None
    parser.take("{")
    while parser.has_more("}", first=not tensors and metadata is None):
        at = parser.pos
        name = parser.string(MAX_NAME_BYTES, "a tensor name")
        if name in tensors or (name == "__metadata__" and metadata is not None):
            parser.refuse(f"key {printable(name)!r} occurs twice", at)
        parser.take(":")
        if name == "__metadata__":
            metadata = _parse_metadata(parser)
            continue
        if len(tensors) == MAX_TENSORS:
            parser.refuse(f"more than {MAX_TENSORS} tensors", at)
        tensors[name] = _parse_tensor(parser, f"tensor {printable(name)!r}")
    if parser.peek() >= 0:
        parser.refuse("something follows the closing brace")
    return tensors, metadata or {}


def _parse_metadata(parser: _Parser) -> dict[str, str]:
    metadata: dict[str, str] = {}
    parser.take("{")
    while parser.has_more("}", first=not metadata):
        if len(metadata) == MAX_METADATA_ENTRIES:
            parser.refuse(f"more than {MAX_METADATA_ENTRIES} metadata entries")
        at = parser.pos
        key = parser.string(MAX_HEADER_BYTES, "a metadata key")
        if key in metadata:
            parser.refuse(f"metadata key {printable(key)!r} occurs twice", at)
        parser.take(":")
        metadata[key] = parser.string(MAX_HEADER_BYTES, f"metadata {printable(key, 80)!r}")
    return metadata


def _parse_tensor(parser: _Parser, what: str) -> SafetensorsTensor:
    at = parser.pos
    readers: dict[str, Callable[[], Any]] = {
        "dtype": lambda: parser.string(64, f"the dtype of {what}"),
        "shape": lambda: parser.integers(MAX_DIMS, f"the shape of {what}"),
        "data_offsets": lambda: parser.integers(2, f"data_offsets of {what}"),
    }
    found: dict[str, Any] = {}
    parser.take("{")
    while parser.has_more("}", first=not found):
        key = parser.string(64, f"a field of {what}")
        if key in found:
            parser.refuse(f"{what} has {key!r} twice")
        if key not in readers:
            known = ", ".join(readers)
            parser.refuse(f"{what} has an unknown field {printable(key)!r}; known: {known}")
        parser.take(":")
        found[key] = readers[key]()
    if len(found) < len(readers) or len(found["data_offsets"]) != 2:
        parser.refuse(f"{what} needs dtype, shape and two data_offsets", at)
    tensor = SafetensorsTensor(found["dtype"], found["shape"], *found["data_offsets"])
    _check_size(parser, tensor, what, at)
    return tensor


def _check_size(parser: _Parser, tensor: SafetensorsTensor, what: str, at: int) -> None:
    """The bytes that dtype and shape need must be those between the offsets."""
    bits = DTYPE_BITS.get(tensor.dtype)
    if bits is None:
        hint = did_you_mean(tensor.dtype, DTYPE_BITS)
        parser.refuse(f"{what} has unknown dtype {printable(tensor.dtype)!r}.{hint}", at)
    shape = list(tensor.shape)
    for extent in shape:
        bits *= extent
        if bits > _INT64_MAX:
            parser.refuse(f"{what} has an impossible shape {shape}", at)
    if bits % 8:
        parser.refuse(f"{what} ({tensor.dtype} {shape}) is not a whole number of bytes", at)
    if tensor.nbytes != bits // 8:
        parser.refuse(
            f"{what} ({tensor.dtype} {shape}) takes {bits // 8} bytes, "
            f"data_offsets {tensor.start}, {tensor.end} give it {tensor.nbytes}",
            at,
        )


def _check_extents(
    parser: _Parser, ordered: Mapping[str, SafetensorsTensor], data_offset: int, file_size: int
) -> None:
    """Tensors must fill the data exactly: no hole, no overlap, nothing missing, nothing behind."""
    position = 0
    for name, tensor in ordered.items():
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a hole"
            parser.refuse(
                f"tensor {printable(name)!r} {fault}: it begins at {tensor.start}, "
                f"expected {position}",
                data_offset,
            )
        position = tensor.end
    expected = data_offset + position
    if file_size < expected:
        raise InputError(
            f"{parser.name}: truncated: expected {expected} bytes, the file has {file_size} "
            f"({expected - file_size} missing)",
            next_step="Download or copy this shard again.",
        )
    if file_size > expected:
        parser.refuse(
            f"{file_size - expected} bytes behind the last tensor; expected {expected} bytes in "
            f"all, the file has {file_size}",
            expected,
        )
