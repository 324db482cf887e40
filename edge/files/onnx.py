"""The header of an ONNX file, read without running anything and without trusting a length.

An `.onnx` file is one protobuf message (`onnx.proto3` of onnx/onnx). Only what a reader of models
needs is taken: inputs and outputs, operators, where tensors lie. Tensor data is skipped, never
copied. Every length is checked against what is left of its parent before it is used; data outside
the file must be a regular file in the same folder, no link, long enough for its declared size.

    model = read_onnx(Path("model.onnx"))
    model.inputs[0].shape        # (1, 3, "height", "width")
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from boardfit.edge.disk.opened_file import OpenedFile, Source
from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.files.kind import HEAD_BYTES, foreign, open_regular
from boardfit.edge.units import printable

MAX_NODES = 200_000
MAX_TENSORS = 200_000
MAX_NAME_BYTES = 64 * 1024
MAX_DEPTH = 16  # graphs inside attributes (If, Loop, Scan) inside graphs
MAX_RANK = 32
_MAX_DIM = 1 << 40
_MAX_ENTRIES = 64  # external_data entries of one tensor; the format knows five keys
# A name that any file system keeps inside the folder: no separator, no drive, nothing hidden.
_EXTERNAL_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9 ._+-]*$")

#: TensorProto.DataType: name and bits per value (0: variable, as strings are).
DATA_TYPES = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16),
    6: ("int32", 32), 7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16),
    11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64),
    15: ("complex128", 128), 16: ("bfloat16", 16), 17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8), 19: ("float8e5m2", 8), 20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4), 22: ("int4", 4), 23: ("float4e2m1", 4), 24: ("float8e8m0", 8),
    25: ("uint2", 2), 26: ("int2", 2),
}  # fmt: skip

Dim = int | str | None


@dataclass(frozen=True)
class ValueInfo:
    """One input or output of the graph.

    `shape` has a number per fixed dimension, a name per symbolic one, None per unknown one. It is
    None itself if the file does not state it.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True)
class OnnxTensor:
    """One stored tensor. `external` is the file beside the model that holds it, or None."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    external: str | None
    nbytes: int


@dataclass(frozen=True)
class NodeInfo:
    """One operator; `ints` holds its integer attributes."""

    op_type: str
    domain: str
    name: str
    ints: dict[str, int]

    @property
    def op(self) -> str:
        """`Conv`, or `com.microsoft.MatMulNBits` for one outside the standard domain."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type


@dataclass(frozen=True)
class OnnxModel:
    """Content of the header; `external_files` are names of files in the model's folder."""

    path: Source
    ir_version: int
    producer: str
    opsets: dict[str, int]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]
    nodes: tuple[NodeInfo, ...]
    tensors: tuple[OnnxTensor, ...]
    external_files: tuple[str, ...]
    nbytes: int

    @property
    def ops(self) -> dict[str, int]:
        """How often each operator appears, by name."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[node.op] = counts.get(node.op, 0) + 1
        return counts

    @property
    def files(self) -> tuple[Source, ...]:
        """The model file and the files of its external data."""
        return (self.path, *(_find_data_file(self.path, name) for name in self.external_files))


def read_onnx(path: Source | str) -> OnnxModel:
    """Read and check the header of the ONNX file at `path`, and that its external data is there.

    Raises InputError for what is no ONNX file or is cut short, UnsafeInputError for lengths, counts
    or paths that no honest file has.
    """
    path = Path(path) if isinstance(path, str) else path
    file, size = open_regular(path)
    with file:
        head = file.read(HEAD_BYTES)
        kind = foreign(head)
        if kind is not None:
            raise InputError(
                f"{path}: {kind.name}; expected an ONNX file", next_step=kind.next_step
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _Collected()
            try:
                _read_model(_Span(path, data, 0, size), found)
            except RecursionError:
                raise UnsafeInputError(f"{path}: graphs nest too deep") from None
    if not found.has_graph:
        raise InputError(
            f"{path}: not an ONNX file: there is no graph in it",
            next_step="pass the .onnx file that an exporter wrote, whole",
        )
    external = _check_external(path, found.external)
    stored = tuple(_measure_tensor(path, tensor, external) for tensor in found.tensors)
    names = {tensor.name for tensor in stored}
    return OnnxModel(
        path=path,
        ir_version=found.ir_version,
        producer=found.producer,
        opsets=found.opsets,
        # Old exporters list initializers among the inputs too.
        inputs=tuple(v for v in found.inputs if v.name not in names),
        outputs=tuple(found.outputs),
        nodes=tuple(found.nodes),
        tensors=stored,
        external_files=tuple(sorted(external)),
        nbytes=size + sum(external.values()),
    )


# ---- wire format --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Span:
    """Bytes `start` to `stop` of a mapped file."""

    path: Source
    data: mmap.mmap | bytes
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def varint(self, at: int) -> tuple[int, int]:
        """An integer at `at` and the position behind it."""
        value = shift = 0
        while True:
            if at >= self.stop:
                raise InputError(f"{self.path}: not an ONNX file, or cut short at byte {at}")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
            if shift > 63:
                raise UnsafeInputError(f"{self.path}: a number of more than 64 bits at byte {at}")

    def fields(self) -> Iterator[tuple[int, int | _Span]]:
        """Field numbers and values: an int, or a span for everything that has a length."""
        at = self.start
        while at < self.stop:
            key, at = self.varint(at)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, at = self.varint(at)
                yield number, value
                continue
            if wire == 2:
                length, at = self.varint(at)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise InputError(f"{self.path}: not an ONNX file (wire type {wire} at byte {at})")
            if length > self.stop - at:
                raise InputError(
                    f"{self.path}: a field of {length} bytes at byte {at}, where {self.stop - at} "
                    "are left: not an ONNX file, or cut short",
                    next_step="copy or download it again",
                )
            yield number, _Span(self.path, self.data, at, at + length)
            at += length

    def text(self) -> str:
        if self.size > MAX_NAME_BYTES:
            raise UnsafeInputError(f"{self.path}: a name of {self.size} bytes")
        return bytes(self.data[self.start : self.stop]).decode("utf-8", "replace")

    def packed(self) -> Iterator[int]:
        at = self.start
        while at < self.stop:
            value, at = self.varint(at)
            yield value


def _text(value: int | _Span) -> str:
    return value.text() if isinstance(value, _Span) else ""


def _to_signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# ---- messages -----------------------------------------------------------------------------------


@dataclass
class _RawTensor:
    name: str = ""
    data_type: int = 0
    shape: list[int] = field(default_factory=list)
    stored_bytes: int = 0
    location: str | None = None
    offset: int = 0
    length: int | None = None


@dataclass
class _Collected:
    has_graph: bool = False
    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[ValueInfo] = field(default_factory=list)
    outputs: list[ValueInfo] = field(default_factory=list)
    nodes: list[NodeInfo] = field(default_factory=list)
    tensors: list[_RawTensor] = field(default_factory=list)

    @property
    def external(self) -> list[_RawTensor]:
        return [tensor for tensor in self.tensors if tensor.location is not None]


def _read_model(span: _Span, found: _Collected) -> None:
    for number, value in span.fields():
        if number == 1 and isinstance(value, int):
            found.ir_version = value
        elif number == 2:
            found.producer = _text(value)
        elif number == 7 and isinstance(value, _Span):
            if found.has_graph:
                raise UnsafeInputError(f"{span.path}: two graphs in one model")
            found.has_graph = True
            _read_graph(value, found, 0)
        elif number == 8 and isinstance(value, _Span):
            domain, version = "", 0
            for key, item in value.fields():
                if key == 1:
                    domain = _text(item)
                elif key == 2 and isinstance(item, int):
                    version = item
            found.opsets[domain] = version
        elif number == 25 and isinstance(value, _Span):  # a function's body is nodes too
            for key, item in value.fields():
                if key == 7 and isinstance(item, _Span):
                    _read_node(item, found, 0)


def _read_graph(span: _Span, found: _Collected, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnsafeInputError(f"{span.path}: graphs nest more than {MAX_DEPTH} deep")
    for number, value in span.fields():
        if not isinstance(value, _Span):
            continue
        if number == 1:
            _read_node(value, found, depth)
        elif number == 5:
            _add_tensor(value, found)
        elif number == 15:  # sparse: two tensors
            for key, item in value.fields():
                if key in (1, 2) and isinstance(item, _Span):
                    _add_tensor(item, found)
        elif number in (11, 12) and depth == 0:
            target = found.inputs if number == 11 else found.outputs
            if len(target) >= MAX_TENSORS:
                raise UnsafeInputError(f"{span.path}: more than {MAX_TENSORS} inputs or outputs")
            target.append(_read_value_info(value))


def _read_node(span: _Span, found: _Collected, depth: int) -> None:
    if len(found.nodes) >= MAX_NODES:
        raise UnsafeInputError(f"{span.path}: more than {MAX_NODES} operators")
    op_type = domain = name = ""
    ints: dict[str, int] = {}
    position = len(found.nodes)
    found.nodes.append(NodeInfo("", "", "", ints))  # before those of its own graphs
    for number, value in span.fields():
        if number == 3:
            name = _text(value)
        elif number == 4:
            op_type = _text(value)
        elif number == 5 and isinstance(value, _Span):
            _read_attribute(value, ints, found, depth)
        elif number == 7:
            domain = _text(value)
    found.nodes[position] = NodeInfo(op_type, "" if domain == "ai.onnx" else domain, name, ints)


def _read_attribute(span: _Span, ints: dict[str, int], found: _Collected, depth: int) -> None:
    name, number_value = "", None
    for number, value in span.fields():
        if number == 1:
            name = _text(value)
        elif number == 3 and isinstance(value, int):
            number_value = _to_signed(value)
        elif number in (5, 10) and isinstance(value, _Span):
            _add_tensor(value, found)
        elif number in (6, 11) and isinstance(value, _Span):
            _read_graph(value, found, depth + 1)
    if number_value is not None:
        ints[name] = number_value


def _add_tensor(span: _Span, found: _Collected) -> None:
    if len(found.tensors) >= MAX_TENSORS:
        raise UnsafeInputError(f"{span.path}: more than {MAX_TENSORS} tensors")
    tensor, entries, outside = _RawTensor(), dict[str, str](), False
    for number, value in span.fields():
        if number == 1:
            dims = [value] if isinstance(value, int) else list(value.packed())
            tensor.shape += [_to_signed(d) for d in dims]
        elif number == 2 and isinstance(value, int):
            tensor.data_type = value
        elif number == 8:
            tensor.name = _text(value)
        elif number == 13 and isinstance(value, _Span):
            key, entry = _read_entry(value)
            entries[key] = entry
            if len(entries) > _MAX_ENTRIES:
                raise UnsafeInputError(f"{span.path}: {len(entries)} notes on one tensor")
        elif number == 14 and isinstance(value, int):
            outside = value == 1
        elif number in (4, 5, 6, 7, 9, 10, 11):
            tensor.stored_bytes += value.size if isinstance(value, _Span) else 8
    shown = printable(tensor.name)
    if len(tensor.shape) > MAX_RANK or any(not 0 <= d < _MAX_DIM for d in tensor.shape):
        raise UnsafeInputError(f"{span.path}: tensor {shown} has shape {tensor.shape[:8]}")
    if outside or entries:
        if "location" not in entries:
            raise InputError(f"{span.path}: tensor {shown} lies in another file, unnamed")
        tensor.location = entries["location"]
        tensor.offset = _count(span.path, shown, "offset", entries.get("offset", "0"))
        if "length" in entries:
            tensor.length = _count(span.path, shown, "length", entries["length"])
    found.tensors.append(tensor)


def _read_entry(span: _Span) -> tuple[str, str]:
    key = value = ""
    for number, item in span.fields():
        if number == 1:
            key = _text(item)
        elif number == 2:
            value = _text(item)
    return key, value


def _count(path: Source, tensor: str, key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UnsafeInputError(f"{path}: tensor {tensor}: {key} is {printable(text)!r}")
    return int(text)


def _read_value_info(span: _Span) -> ValueInfo:
    name, dtype, shape = "", "unknown", None
    for number, value in span.fields():
        if number == 1:
            name = _text(value)
        elif number == 2 and isinstance(value, _Span):
            for kind, inner in value.fields():
                if kind == 1 and isinstance(inner, _Span):
                    dtype, shape = _read_tensor_type(inner)
    return ValueInfo(name, dtype, shape)


def _read_tensor_type(span: _Span) -> tuple[str, tuple[Dim, ...] | None]:
    dtype, shape = "unknown", None
    for number, value in span.fields():
        if number == 1 and isinstance(value, int):
            dtype = DATA_TYPES.get(value, (f"type {value}", 0))[0]
        elif number == 2 and isinstance(value, _Span):
            dims: list[Dim] = []
            for key, item in value.fields():
                if key == 1 and isinstance(item, _Span):
                    dims.append(_read_dim(item))
                if len(dims) > MAX_RANK:
                    raise UnsafeInputError(f"{span.path}: a tensor of more than {MAX_RANK} axes")
            shape = tuple(dims)
    return dtype, shape


def _read_dim(span: _Span) -> Dim:
    for number, value in span.fields():
        if number == 1 and isinstance(value, int):
            size = _to_signed(value)
            if size >= _MAX_DIM:
                raise UnsafeInputError(f"{span.path}: a dimension of {size}")
            return size if size >= 0 else None
        if number == 2:
            return _text(value) or None
    return None


# ---- data outside the file ----------------------------------------------------------------------


def _check_external(path: Source, tensors: list[_RawTensor]) -> dict[str, int]:
    """Sizes of the files that hold `tensors`, all of them plain files in the model's folder."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        location = tensor.location or ""
        if location in sizes:
            continue
        name = location.removeprefix("./")
        if not _EXTERNAL_NAME.fullmatch(name):
            raise UnsafeInputError(
                f"{path}: tensor {printable(tensor.name)} claims to lie in "
                f"{printable(location)!r}: data may only lie in a file of the model's own folder",
                next_step="do not use this file, unless you trust where it came from",
            )
        beside = path.parent / name
        try:
            info = os.lstat(beside)
        except OSError:
            raise InputError(
                f"{path}: its data file {name} is missing",
                next_step="copy it too: an .onnx file and its data belong together",
            ) from None
        if stat.S_ISLNK(info.st_mode):
            raise UnsafeInputError(
                f"{path}: its data file {name} is a link",
                next_step="replace the link by the file itself, if you trust what it points to",
            )
        if not stat.S_ISREG(info.st_mode):
            raise UnsafeInputError(f"{path}: its data file {name} is not a regular file")
        sizes[location] = _find_data_file(path, name).stat().st_size
    return {location.removeprefix("./"): size for location, size in sizes.items()}


def _find_data_file(path: Source, name: str) -> Source:
    """A file in the folder of a model. Raises InputError when it belongs to something else."""
    if not isinstance(path, OpenedFile):
        return path.parent / name
    found = path.open_beside(name)
    if found is None:
        raise InputError(f"{path}: its data file {name} is not part of the bundle")
    return found


def _measure_tensor(path: Source, tensor: _RawTensor, external: dict[str, int]) -> OnnxTensor:
    name, bits = DATA_TYPES.get(tensor.data_type, (f"type {tensor.data_type}", 0))
    count = 1
    for extent in tensor.shape:
        count *= extent
    expected = -(-count * bits // 8)
    if tensor.location is None:
        return OnnxTensor(tensor.name, name, tuple(tensor.shape), None, tensor.stored_bytes)
    location = tensor.location.removeprefix("./")
    length = expected if tensor.length is None else tensor.length
    if tensor.offset + length > external[location]:
        raise InputError(
            f"{path}: tensor {printable(tensor.name)} lies at bytes {tensor.offset} to "
            f"{tensor.offset + length} of {location}, which has {external[location]}: cut short",
            next_step="copy or build the model again",
        )
    if bits and length != expected:
        raise UnsafeInputError(
            f"{path}: tensor {printable(tensor.name)} of shape {list(tensor.shape)} {name} takes "
            f"{expected} bytes, its data has {length}"
        )
    return OnnxTensor(tensor.name, name, tuple(tensor.shape), location, length)
