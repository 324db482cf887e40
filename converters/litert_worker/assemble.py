"""A graph with tags and a plan of types → a .tflite with quantized constants, streamed.

The flatbuffer is packed twice: first with scales that are not known yet, to learn where its end is
(its layout depends on sizes only), then for real. Between the two every constant is quantized and
written behind it, where `Buffer.offset` and `Buffer.size` point. Nothing but one matrix is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert_types import WeightType
from converters.litert_worker.quantize import Quantized
from converters.litert_worker.skeleton import FIRST_TAG
from edge.errors import EngineError, UnsupportedModelError

IDENTIFIER = b"TFL3"
ALIGNMENT = 64
_OPERATORS = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
_ROLES = {"FULLY_CONNECTED": "linear", "EMBEDDING_LOOKUP": "embedding", "GATHER": "embedding"}
_TFLITE_TYPES = {4: schema.TensorType.INT4, 8: schema.TensorType.INT8}


@dataclass
class Use:
    """Where one constant of the graph is used: (subgraph, tensor) pairs, and as what."""

    tag: int
    roles: set[str] = field(default_factory=set)
    places: list[tuple[int, int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Constant:
    """One constant to be written: rows, columns and type; `places` are (subgraph, tensor)."""

    source: str
    shape: tuple[int, int]
    kind: WeightType
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


def find_uses(model: Any, tags: Mapping[int, str]) -> dict[int, Use]:
    """Tag → where it is. Raises UnsupportedModelError when a matrix was changed on the way, or is
    used by an operator that has no quantized weights.
    """
    uses: dict[int, Use] = {}
    for g, graph in enumerate(model.subgraphs):
        tag_of: dict[int, int] = {}
        for i, tensor in enumerate(graph.tensors):
            value = _first_float(model.buffers[tensor.buffer], tensor)
            if value is not None and abs(value) >= FIRST_TAG / 1024:
                if value not in tags:
                    raise UnsupportedModelError(
                        f"{tensor.name.decode()} was computed from a weight while the graph was "
                        "simplified; this family cannot be exported to LiteRT yet",
                        next_step="build a GGUF: --format gguf",
                    )
                tag_of[i] = int(value)
        for operator in graph.operators:
            for i in operator.inputs:
                if (tag := tag_of.get(int(i))) is None:
                    continue
                name = operator_name(model, operator)
                role = _ROLES.get(name)
                if role is None:
                    raise UnsupportedModelError(
                        f"weight {tags[tag]} goes into {name}, which has no quantized weights",
                        next_step="build a GGUF: --format gguf",
                    )
                use = uses.setdefault(tag, Use(tag))
                use.roles.add(role)
                place = (g, int(i), role)
                if place not in use.places:
                    use.places.append(place)
    return uses


def _first_float(buffer: Any, tensor: Any) -> float | None:
    if tensor.type != schema.TensorType.FLOAT32 or buffer.data is None or len(buffer.data) < 4:
        return None
    return float(np.frombuffer(bytes(buffer.data[:4]), np.float32)[0])


def assemble(
    model: Any,
    constants: list[Constant],
    quantize: Callable[[Constant], Quantized],
    output: Path,
    *,
    progress: Callable[[int, int], None],
) -> None:
    """Write `model` with `constants` in place of its tags to `output`. `model` is changed."""
    slots = [_Slot(model, constant) for constant in constants]
    new = _drop_unused_buffers(model)
    for slot in slots:
        slot.data_buffer = new[slot.data_buffer]
        slot.scales_buffer = new.get(slot.scales_buffer, -1)
    position = 0
    for slot in slots:
        position = slot.place_at(model, position)
    head_size = _aligned(len(_pack(model)))
    for slot in slots:
        slot.move(model, head_size)
    total = sum(c.shape[0] * c.shape[1] for c in constants)
    done = 0
    with output.open("wb") as file:
        for slot, constant in zip(slots, constants, strict=True):
            progress(done, total)
            slot.write(model, file, quantize(constant))
            done += constant.shape[0] * constant.shape[1]
        head = _pack(model)
        if _aligned(len(head)) != head_size:
            raise EngineError(f"the header took {len(head)} bytes; {head_size} were set aside")
        file.truncate(max(file.tell(), head_size))
        file.seek(0)
        file.write(head)
    progress(total, total)


class _Slot:
    """The buffers and tensors of one constant."""

    def __init__(self, model: Any, constant: Constant) -> None:
        self.constant, kind = constant, constant.kind
        rows, n = constant.shape
        self.data_size = kind.data_bytes(rows * n)
        self.scales_size = 2 * rows * (n // kind.block_size) if kind.block_size else 0
        self.data_buffer = _new_buffer(model)
        self.scales_buffer = _new_buffer(model) if kind.block_size else -1
        self.quantizations: list[Any] = []
        for g, i in constant.places:
            graph = model.subgraphs[g]
            tensor = graph.tensors[i]
            tensor.shape = [rows, n]
            tensor.shapeSignature = None
            tensor.buffer = self.data_buffer
            tensor.type = _TFLITE_TYPES[kind.bits]
            tensor.quantization = quantization = schema.QuantizationParametersT()
            if kind.block_size:
                scales = schema.TensorT()
                scales.name = tensor.name + b"_scales"
                scales.shape = [rows, n // kind.block_size]
                scales.type = schema.TensorType.FLOAT16
                scales.buffer = self.scales_buffer
                graph.tensors.append(scales)
                details = schema.BlockwiseQuantizationT()
                details.scales = len(graph.tensors) - 1
                details.zeroPoints = -1
                details.blockSize = kind.block_size
                quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
                quantization.details = details
            else:
                count = 1 if kind.per_tensor else rows
                quantization.scale = np.ones(count, np.float32)
                quantization.zeroPoint = np.zeros(count, np.int64)
            quantization.quantizedDimension = 0
            self.quantizations.append(quantization)

    def place_at(self, model: Any, position: int) -> int:
        """Reserve room from `position`; returns where the next constant may begin."""
        self._set(model, self.data_buffer, position, self.data_size)
        position = _aligned(position + self.data_size)
        if self.scales_size:
            self._set(model, self.scales_buffer, position, self.scales_size)
            position = _aligned(position + self.scales_size)
        return position

    def move(self, model: Any, by: int) -> None:
        for buffer in (self.data_buffer, self.scales_buffer):
            if buffer >= 0:
                model.buffers[buffer].offset += by - _FAR

    @staticmethod
    def _set(model: Any, buffer: int, position: int, size: int) -> None:
        # Far away at first: an offset of 0 or 1 would be left out and the header shrink.
        model.buffers[buffer].offset = position + _FAR
        model.buffers[buffer].size = size

    def write(self, model: Any, file: Any, quantized: Quantized) -> None:
        if quantized.data.nbytes != self.data_size:
            raise EngineError(f"{self.constant.source}: {quantized.data.nbytes} bytes quantized")
        file.seek(model.buffers[self.data_buffer].offset)
        file.write(quantized.data)
        if self.scales_size:
            file.seek(model.buffers[self.scales_buffer].offset)
            file.write(quantized.scales.astype(np.float16))
        else:
            scales = quantized.scales.ravel()
            if self.constant.kind.per_tensor:
                scales = scales[:1]
            for quantization in self.quantizations:
                quantization.scale = scales.astype(np.float32)


_FAR = 1 << 40


def _new_buffer(model: Any) -> int:
    buffer = schema.BufferT()
    buffer.offset = _FAR
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _aligned(position: int) -> int:
    return (position + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def _pack(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _drop_unused_buffers(model: Any) -> dict[int, int]:
    """Buffers that no tensor and no metadata refers to any more, the tags among them, go; so do the
    empty ones of activations, which share buffer 0. Returns old → new numbers.
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
