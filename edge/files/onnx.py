"""The header of an ONNX file, read without running anything and without trusting a length.

Only what a reader of models needs is taken (`onnx.proto3` of onnx/onnx). Data outside the file must
be a regular file in the same folder, no link, long enough for its declared size.
"""

import math
import mmap
import os
import re
import stat
from collections import Counter
from collections.abc import Sized
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from boardfit.edge.disk.opened_file import OpenedFile, Source
from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.files.kind import HEAD_BYTES, foreign, open_regular
from boardfit.edge.files.protobuf import ProtoMessage
from boardfit.edge.units import printable

MAX_NODES = 200_000
MAX_TENSORS = 200_000
MAX_DEPTH = 16  # graphs inside attributes (If, Loop, Scan) inside graphs
MAX_RANK = 32
_MAX_DIM = 1 << 40
_FAULT = "not an ONNX file, or cut short"
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
    """One input of the graph. `shape` has a number per fixed dimension, a name per symbolic one,
    None per unknown one; it is None itself if the file does not state it.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True)
class OnnxTensor:
    """One stored tensor, in the model or in a file beside it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
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
    """Content of the header; `nbytes` is of the file and the `external_files` beside it."""

    path: Source
    inputs: tuple[ValueInfo, ...]
    nodes: tuple[NodeInfo, ...]
    tensors: tuple[OnnxTensor, ...]
    external_files: tuple[str, ...]
    nbytes: int

    @property
    def ops(self) -> dict[str, int]:
        return dict(Counter(node.op for node in self.nodes))

    @property
    def files(self) -> tuple[Source, ...]:
        """The model file and the files of its external data."""
        return (self.path, *(_find_data_file(self.path, name) for name in self.external_files))


def read_onnx(path: Source | str) -> OnnxModel:
    """Read and check the header of an ONNX file, and that its external data is there. Raises
    InputError for what is no ONNX file or is cut short, UnsafeInputError for what no honest file
    has.
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
            found = _Collected(str(path))
            try:
                _read_model(ProtoMessage(data, 0, size, str(path), _FAULT), found)
            except RecursionError:
                raise UnsafeInputError(f"{path}: graphs nest too deep") from None
    external = _check_external(path, [t for t in found.tensors if t.location is not None])
    names = {tensor.name for tensor in found.tensors}
    return OnnxModel(
        path=path,
        # Old exporters list initializers among the inputs too.
        inputs=tuple(v for v in found.inputs if v.name not in names),
        nodes=tuple(found.nodes),
        tensors=tuple(_measure_tensor(path, tensor, external) for tensor in found.tensors),
        external_files=tuple(sorted(external)),
        nbytes=size + sum(external.values()),
    )


@dataclass
class _RawTensor:
    name: str
    data_type: int
    shape: list[int]
    stored_bytes: int
    location: str | None = None
    offset: int = 0
    length: int | None = None


@dataclass
class _Collected:
    path: str
    inputs: list[ValueInfo] = field(default_factory=list)
    nodes: list[NodeInfo] = field(default_factory=list)
    tensors: list[_RawTensor] = field(default_factory=list)

    def check_room(self, found: Sized, limit: int, what: str) -> None:
        if len(found) >= limit:
            raise UnsafeInputError(f"{self.path}: more than {limit} {what}")


def _read_model(model: ProtoMessage, found: _Collected) -> None:
    n_graphs = 0
    for graph in model.parts(7):
        n_graphs += 1
        if n_graphs > 1:
            raise UnsafeInputError(f"{found.path}: two graphs in one model")
        _read_graph(graph, found, 0)
    for function in model.parts(25):  # a function's body is nodes too
        for node in function.parts(7):
            _read_node(node, found, 0)
    if not n_graphs:
        raise InputError(
            f"{found.path}: not an ONNX file: there is no graph in it",
            next_step="pass the .onnx file that an exporter wrote, whole",
        )


def _read_graph(graph: ProtoMessage, found: _Collected, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnsafeInputError(f"{found.path}: graphs nest more than {MAX_DEPTH} deep")
    for node in graph.parts(1):
        _read_node(node, found, depth)
    for tensor in graph.parts(5):
        _add_tensor(tensor, found)
    for sparse in graph.parts(15):
        for tensor in sparse.parts(1, 2):
            _add_tensor(tensor, found)
    for value in graph.parts(11) if depth == 0 else ():
        found.check_room(found.inputs, MAX_TENSORS, "inputs")
        found.inputs.append(_read_value_info(value))


def _read_node(node: ProtoMessage, found: _Collected, depth: int) -> None:
    found.check_room(found.nodes, MAX_NODES, "operators")
    ints: dict[str, int] = {}
    domain = node.text(7)
    domain = "" if domain == "ai.onnx" else domain
    found.nodes.append(NodeInfo(node.text(4), domain, node.text(3), ints))
    for attribute in node.parts(5):
        if (value := attribute.number(3)) is not None:
            ints[attribute.text(1)] = value
        for tensor in attribute.parts(5, 10):
            _add_tensor(tensor, found)
        for graph in attribute.parts(6, 11):
            _read_graph(graph, found, depth + 1)


def _add_tensor(message: ProtoMessage, found: _Collected) -> None:
    found.check_room(found.tensors, MAX_TENSORS, "tensors")
    stored = sum(
        value.size if isinstance(value, ProtoMessage) else 8
        for number, value in message.fields()
        if number in (4, 5, 6, 7, 9, 10, 11)
    )
    shape = list(islice(message.numbers(1), MAX_RANK + 1))
    tensor = _RawTensor(message.text(8), message.number(2) or 0, shape, stored)
    shown = printable(tensor.name)
    if len(shape) > MAX_RANK or any(not 0 <= d < _MAX_DIM for d in shape):
        raise UnsafeInputError(f"{found.path}: tensor {shown} has shape {shape[:8]}")
    entries: dict[str, str] = {}
    for entry in message.parts(13):
        found.check_room(entries, _MAX_ENTRIES, f"notes on tensor {shown}")
        entries[entry.text(1)] = entry.text(2)
    if message.number(14) == 1 or entries:
        if "location" not in entries:
            raise InputError(f"{found.path}: tensor {shown} lies in another file, unnamed")
        tensor.location = entries["location"]
        tensor.offset = _count(found.path, shown, "offset", entries.get("offset", "0"))
        if "length" in entries:
            tensor.length = _count(found.path, shown, "length", entries["length"])
    found.tensors.append(tensor)


def _count(path: str, tensor: str, key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UnsafeInputError(f"{path}: tensor {tensor}: {key} is {printable(text)!r}")
    return int(text)


def _read_value_info(message: ProtoMessage) -> ValueInfo:
    dtype, shape = "unknown", None
    for kind in message.parts(2):
        for tensor in kind.parts(1):
            number = tensor.number(1)
            dtype = "unknown" if number is None else _data_type(number)[0]
            for dims in tensor.parts(2):
                shape = tuple(map(_read_dim, islice(dims.parts(1), MAX_RANK + 1)))
                if len(shape) > MAX_RANK:
                    raise UnsafeInputError(f"{message.name}: a tensor of more than {MAX_RANK} axes")
    return ValueInfo(message.text(1), dtype, shape)


def _data_type(number: int) -> tuple[str, int]:
    return DATA_TYPES.get(number, (f"type {number}", 0))


def _read_dim(dim: ProtoMessage) -> Dim:
    size = dim.number(1)
    if size is None:
        return dim.text(2) or None
    if size >= _MAX_DIM:
        raise UnsafeInputError(f"{dim.name}: a dimension of {size}")
    return size if size >= 0 else None


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
    """The tensor, its size checked against the file that holds them where that is another."""
    name, bits = _data_type(tensor.data_type)
    found = OnnxTensor(tensor.name, name, tuple(tensor.shape), tensor.stored_bytes)
    if tensor.location is None:
        return found
    expected = -(-math.prod(tensor.shape) * bits // 8)
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
            f"{path}: tensor {printable(tensor.name)} of shape {tensor.shape} {name} takes "
            f"{expected} bytes, its data has {length}"
        )
    return replace(found, nbytes=length)
