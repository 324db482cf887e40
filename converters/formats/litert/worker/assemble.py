"""A graph with tags and a plan of types → a .tflite with quantized constants, streamed.

The flatbuffer is packed twice: first with scales that are not known yet, to learn where its end is
(its layout depends on sizes only), then for real. Between the two every constant is quantized and
written behind it, so that no more than one matrix is in memory. What finds it there is either
`Buffer.offset` and `Buffer.size`, or the offset of the vector `Buffer.data`, set by hand: offsets
of a flatbuffer may lead anywhere ahead. Runtimes of 2023 know the second way only; files over 2 GiB
can have the first only.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from boardfit.converters.formats.litert.recipe import WeightType
from boardfit.converters.formats.litert.worker.factors import Factors
from boardfit.converters.formats.litert.worker.quantize import Quantized
from boardfit.edge.errors import DoesNotFitError, EngineError, UnsupportedModelError
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import format_bytes

IDENTIFIER = b"TFL3"
ALIGNMENT = 64
_OPERATORS = {
    value: str(name)
    for name, value in vars(schema.BuiltinOperator).items()
    if isinstance(value, int)
}
_ROLES = {"FULLY_CONNECTED": "linear", "EMBEDDING_LOOKUP": "embedding", "GATHER": "embedding"}
_TFLITE_TYPES = {4: schema.TensorType.INT4, 8: schema.TensorType.INT8}


@dataclass
class Use:
    """Where one matrix is used, as what (`linear`, `embedding`), and times what: the converter
    folds a multiplication that follows a FULLY_CONNECTED into its weights.
    """

    tag: int
    roles: set[str] = field(default_factory=set)
    places: list[tuple[int, int, str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Constant:
    """One constant to be written: rows, columns, type and what its values are multiplied by;
    `places` are (subgraph, tensor).
    """

    source: str
    shape: tuple[int, int]
    kind: WeightType
    factor: float
    places: tuple[tuple[int, int], ...]


def read_graph(path: Path) -> Any:
    """The flatbuffer as an object tree, constants that lie behind it taken in."""
    data = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:
            piece = data[buffer.offset : buffer.offset + buffer.size]
            buffer.data = np.frombuffer(piece, np.uint8)
            buffer.offset = buffer.size = 0
    return model


def operator_name(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def find_uses(model: Any, tags: Mapping[int, str], factors: Factors) -> dict[int, Use]:
    """Tag → where it is. Raises UnsupportedModelError when a matrix was changed on the way by more
    than a known factor, or is used by an operator that has no quantized weights.
    """
    uses: dict[int, Use] = {}
    for g, graph in enumerate(model.subgraphs):
        values = [_uniform_value(model.buffers[t.buffer], t) for t in graph.tensors]
        for operator in graph.operators:
            name = operator_name(model, operator)
            role = _ROLES.get(name)
            for k, i in enumerate(map(int, operator.inputs)):
                value = values[i] if i >= 0 else None
                if value is None:
                    continue
                known = factors.split(value)
                if known is None:
                    # A matrix of equal numbers, which no checkpoint has: a tag and something.
                    if role is not None and k == 1:
                        raise _changed_weight_error(graph.tensors[i].name.decode(errors="replace"))
                    continue
                tag, factor = known
                if role is None:
                    raise UnsupportedModelError(
                        f"weight {tags[tag]} goes into {name}, which has no quantized weights",
                        next_step="build a GGUF: --format gguf",
                    )
                use = uses.setdefault(tag, Use(tag))
                use.roles.add(role)
                place = (g, i, role, factor)
                if place not in use.places:
                    use.places.append(place)
    for tag, source in tags.items():
        if tag not in uses:
            raise _changed_weight_error(source)
    return uses


def _changed_weight_error(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"weight {name} was changed while the graph was simplified; this model cannot be made into "
        "LiteRT yet",
        next_step="build a GGUF: --format gguf",
    )


def _uniform_value(buffer: Any, tensor: Any) -> float | None:
    """The number that a constant float matrix consists of, None for everything else."""
    if tensor.type != schema.TensorType.FLOAT32 or buffer.data is None:
        return None
    if tensor.shape is None or len(tensor.shape) != 2:
        return None
    values = np.frombuffer(bytes(buffer.data), np.float32)
    return float(values[0]) if values.size and bool((values == values[0]).all()) else None


def own_tensor(model: Any, g: int, i: int, role: str) -> int:
    """Give the operators of one role a copy of tensor `i` of subgraph `g`, so that the two can have
    different types; return its number.
    """
    graph = model.subgraphs[g]
    graph.tensors.append(copy.copy(graph.tensors[i]))
    new = len(graph.tensors) - 1
    for operator in graph.operators:
        if _ROLES.get(operator_name(model, operator)) == role:
            operator.inputs = [new if int(k) == i else int(k) for k in operator.inputs]
    return new


def assemble(
    model: Any,
    constants: list[Constant],
    quantize: Callable[[Constant], Quantized],
    output: Path,
    *,
    inline: bool,
    progress: Progress,
) -> None:
    """Write `model` with `constants` in place of its tags to `output`. `model` is changed.

    `inline` makes constants vectors of the flatbuffer. Raises DoesNotFitError when that takes more
    than the 2 GiB that a flatbuffer may have.
    """
    slots = [_Slot(model, constant, inline) for constant in constants]
    new = _drop_unused_buffers(model)
    for slot in slots:
        slot.renumber(new)
    position = 0
    for slot in slots:
        position = slot.place_at(position)
    head_size = _align(len(_pack(model)))
    if inline and head_size + position >= _MAX_FLATBUFFER:
        raise DoesNotFitError(
            f"a plain .tflite of {format_bytes(head_size + position)} is not possible; the format "
            f"ends at {format_bytes(_MAX_FLATBUFFER)}",
            shortfall_bytes=head_size + position - _MAX_FLATBUFFER,
            next_step="make a .litertlm, or choose a recipe with fewer bits",
        )
    for slot in slots:
        slot.move(model, head_size)
    total = sum(c.shape[0] * c.shape[1] for c in constants)
    done = 0
    with output.open("wb") as file:
        for slot, constant in zip(slots, constants, strict=True):
            progress(done, total)
            slot.write(file, quantize(constant))
            done += constant.shape[0] * constant.shape[1]
        head = _pack(model)
        if _align(len(head)) != head_size:
            raise EngineError(f"the header took {len(head)} bytes; {head_size} were set aside")
        if inline:
            for slot in slots:
                slot.link(head)
        file.truncate(max(file.tell(), head_size))
        file.seek(0)
        file.write(head)
    progress(total, total)


class _Slot:
    """The buffers and tensors of one constant. `pieces` are its parts in the file: buffer, size in
    bytes and, once placed, where its first byte is.
    """

    def __init__(self, model: Any, constant: Constant, inline: bool) -> None:
        self.constant, self.inline, kind = constant, inline, constant.kind
        rows, n = constant.shape
        self.data = _Piece(_new_buffer(model, inline), kind.data_bytes(rows * n))
        self.pieces = [self.data]
        if kind.block_size:
            self.pieces.append(
                _Piece(_new_buffer(model, inline), 2 * rows * (n // kind.block_size))
            )
        self.per_row: _SharedQuantization | None = None
        if not kind.block_size:
            count = 1 if kind.per_tensor else rows
            self.per_row = _SharedQuantization()
            self.per_row.scale = np.ones(count, np.float32)
            self.per_row.zeroPoint = np.zeros(count, np.int64)
            self.per_row.quantizedDimension = 0
        for g, i in constant.places:
            graph = model.subgraphs[g]
            tensor = graph.tensors[i]
            tensor.shape = [rows, n]
            tensor.shapeSignature = None
            tensor.buffer = self.data.buffer
            tensor.type = _TFLITE_TYPES[kind.bits]
            if self.per_row is not None:
                tensor.quantization = self.per_row
            else:
                scales = schema.TensorT()
                scales.name = tensor.name + b"_scales"
                scales.shape = [rows, n // kind.block_size]
                scales.type = schema.TensorType.FLOAT16
                scales.buffer = self.pieces[1].buffer
                graph.tensors.append(scales)
                details = schema.BlockwiseQuantizationT()
                details.scales = len(graph.tensors) - 1
                details.zeroPoints = -1
                details.blockSize = kind.block_size
                tensor.quantization = quantization = schema.QuantizationParametersT()
                quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
                quantization.details = details
                quantization.quantizedDimension = 0

    def renumber(self, new: Mapping[int, int]) -> None:
        for piece in self.pieces:
            piece.buffer = new[piece.buffer]

    def place_at(self, position: int) -> int:
        """Reserve room behind the head; returns where the next constant may begin."""
        for piece in self.pieces:
            # A vector's length comes right before its bytes.
            piece.at = _align(position + _LENGTH.size)
            position = piece.at + piece.size
        return position

    def move(self, model: Any, head_size: int) -> None:
        """The head is that long: everything now has its place in the file."""
        for piece in self.pieces:
            piece.at += head_size
            if not self.inline:
                model.buffers[piece.buffer].offset = piece.at
                model.buffers[piece.buffer].size = piece.size

    def link(self, head: bytearray) -> None:
        """Point the vectors of a packed head at the bytes behind it."""
        root = schema.Model.GetRootAs(head, 0)
        for piece in self.pieces:
            table = root.Buffers(piece.buffer)._tab
            field = table.Pos + table.Offset(_DATA_FIELD)
            _LENGTH.pack_into(head, field, piece.at - _LENGTH.size - field)

    def write(self, file: Any, quantized: Quantized) -> None:
        if quantized.data.nbytes != self.data.size:
            raise EngineError(f"{self.constant.source}: {quantized.data.nbytes} bytes quantized")
        self._write_piece(file, self.data, quantized.data)
        scales = quantized.scales.ravel()
        if self.per_row is None:
            self._write_piece(file, self.pieces[1], scales.astype(np.float16))
        else:
            self.per_row.scale = scales[: len(self.per_row.scale)].astype(np.float32)

    def _write_piece(self, file: Any, piece: _Piece, data: np.ndarray) -> None:
        file.seek(piece.at - _LENGTH.size)
        file.write(_LENGTH.pack(piece.size if self.inline else 0))
        file.write(data)


class _SharedQuantization(schema.QuantizationParametersT):  # type: ignore[misc]
    """Scales of rows, packed once however many graphs' tensors point at them: a row's take 12
    bytes.
    """

    _packed: tuple[Any, int] | None = None

    def Pack(self, builder: Any) -> int:  # noqa: N802 flatbuffers' name
        if self._packed is None or self._packed[0] is not builder:
            self._packed = (builder, super().Pack(builder))
        return self._packed[1]


@dataclass
class _Piece:
    buffer: int
    size: int
    at: int = 0


_LENGTH = struct.Struct("<I")
_DATA_FIELD = 4  # vtable offset of Buffer.data in schema.fbs
_MAX_FLATBUFFER = 1 << 31
_FAR = 1 << 40


def _new_buffer(model: Any, inline: bool) -> int:
    """A buffer whose true place is set later; what it has until then takes as much of the head."""
    buffer = schema.BufferT()
    if inline:
        buffer.data = np.zeros(1, np.uint8)
    else:
        buffer.offset = buffer.size = _FAR
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _align(position: int) -> int:
    return (position + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def _pack(model: Any) -> bytearray:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytearray(builder.Output())


def _drop_unused_buffers(model: Any) -> dict[int, int]:
    """Drop buffers that no tensor and no metadata refers to any more, tags included.

    The empty buffers of activations go too, and share buffer 0. Returns old → new numbers.
    """
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            if buffer.data is None and not buffer.offset:
                tensor.buffer = 0
    used = {0}
    used |= {t.buffer for g in model.subgraphs for t in g.tensors}
    used |= {m.buffer for m in model.metadata or []}
    kept = sorted(used)
    new = {old: i for i, old in enumerate(kept)}
    model.buffers = [model.buffers[i] for i in kept]
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = new[tensor.buffer]
    for metadata in model.metadata or []:
        metadata.buffer = new[metadata.buffer]
    return new
