"""The structure of a TFLite model, checked before a runtime sees it (tflite-runtime 2.14 checks
nothing: an edited file hangs or crashes it), and what its header says.

Checked: every table and list lies inside the file; every index of a tensor, buffer, operator code
or subgraph exists; constants have the bytes that their shape takes; quantization fits its tensor.
Not checked: whether an operator's tensors make sense together; the kernels do that. Field numbers
and enumerations: `tensorflow/compiler/mlir/lite/schema/schema.fbs`.
"""

import math
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from boardfit.edge.disk.opened_file import Source
from boardfit.edge.engines.litert.runtime_errors import damaged, operator_name
from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.files.flatbuffer import FlatBufferError, Table
from boardfit.edge.files.kind import HEAD_BYTES, foreign, open_regular
from boardfit.edge.units import printable

_MAX_OPERATOR_CODES, _MAX_SUBGRAPHS, _MAX_SIGNATURES = 4096, 8192, 256
_MAX_TENSORS, _MAX_OPERATORS, _MAX_BUFFERS = 1_000_000, 1_000_000, 2_000_000
_MAX_RANK, _MAX_PORTS = 32, 65536
_MAX_NUMBERS = 1 << 26
_SIGNATURE_PORTS = 4096

# Bits of an element, by TensorType; text and handles have no fixed size.
_TYPE_BITS = {
    0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64,
    15: 32, 16: 16, 17: 4, 18: 16, 19: 2, 20: 4, 21: 8, 22: 8,
}  # fmt: skip
_UNSIZED = {5, 13, 14}
#: What the description of a file begins with that boardfit made; its recipe follows.
RECIPE_MARK = "boardfit "
_RECIPE = re.compile(re.escape(RECIPE_MARK) + r"([a-z0-9_]{1,64})")
_MAX_DESCRIPTION = 4096
# Builtin options that hold a list: the union's member -> the list's field.
_OPTION_LISTS = {17: 0, 30: 0}  # ReshapeOptions, SqueezeOptions


@dataclass(frozen=True)
class TfliteHeader:
    """What the structure says: operator names used, signatures by name, and the recipe of a file
    that boardfit made. `n_nodes` is how many times the widest matrix product of a prefill graph
    fits into all of them: a step's time over this is about what its longest operator takes.
    """

    operators: tuple[str, ...]
    signatures: tuple[str, ...]
    n_bytes: int
    recipe: str | None = None
    n_nodes: float = 1.0

    @property
    def quant(self) -> str:
        """How the weights are stored, as far as the file says."""
        return self.recipe or "tflite"


def check_tflite(path: Source, offset: int = 0, n_bytes: int | None = None) -> TfliteHeader:
    """Check the TFLite model at `offset` of a file, all of it by default. Raises InputError for
    what is no TFLite file or is damaged, UnsafeInputError for one that points outside itself.
    """
    file, size = open_regular(path)
    with file:
        file.seek(offset)
        head = file.read(HEAD_BYTES)
        if head[4:8] != b"TFL3":
            kind = foreign(head)
            raise InputError(
                f"{path}: expected a TFLite file, got {kind.name if kind else 'something else'}",
                next_step=kind.next_step if kind else None,
            )
        end = size if n_bytes is None else offset + n_bytes
        if end > size:
            raise damaged(path.name, f"it ends at {end}, the file at {size}")
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(file.fileno(), end - start, access=mmap.ACCESS_READ, offset=start)
        view = memoryview(mapped)[offset - start :]
        try:
            return _checked(view)
        except FlatBufferError as error:
            raise UnsafeInputError(
                f"{path}: its TFLite structure is damaged or edited: {printable(str(error))}",
                next_step="copy or build it again",
            ) from None
        finally:
            view.release()
            mapped.close()


def _checked(data: Any) -> TfliteHeader:
    model = Table.root(data)
    buffers = [_buffer_bytes(data, buffer) for buffer in model.tables(4, _MAX_BUFFERS)]
    codes = [_operator_name(code) for code in model.tables(1, _MAX_OPERATOR_CODES)]
    subgraphs = list(model.tables(2, _MAX_SUBGRAPHS))
    if not subgraphs:
        raise FlatBufferError("no graph in it")
    n_tensors = [_check_subgraph(subgraph, buffers, len(codes)) for subgraph in subgraphs]
    prefills = {
        signature.number(4, "I")
        for signature in model.tables(7, _MAX_SIGNATURES)
        if signature.text(2).startswith("prefill")
    }
    dense = {i for i, code in enumerate(codes) if code == "FULLY_CONNECTED"}
    shares = [_n_nodes(g, dense) for i, g in enumerate(subgraphs) if i in prefills]
    for metadata in model.tables(6, _MAX_SIGNATURES):
        _below(metadata.number(1, "I"), len(buffers), "buffer")
    is_short = model.span(3, 1)[1] <= _MAX_DESCRIPTION
    found = _RECIPE.fullmatch(model.text(3)) if is_short else None
    return TfliteHeader(
        tuple(dict.fromkeys(codes)),
        tuple(_signatures(model, n_tensors)),
        len(data),
        found[1] if found else None,
        min((share for share in shares if share), default=1.0),
    )


def _n_nodes(subgraph: Table, dense: set[int]) -> float:
    """See `TfliteHeader`; 0 for a graph without matrix products."""
    shapes = [tensor.numbers(0, "i", _MAX_RANK) for tensor in subgraph.tables(0, _MAX_TENSORS)]
    sizes: list[float] = []
    for operator in subgraph.tables(3, _MAX_OPERATORS):
        inputs = operator.numbers(1, "i", _MAX_PORTS)
        if operator.number(0, "I") in dense and len(inputs) > 1 and inputs[1] >= 0:
            sizes.append(math.prod(shapes[int(inputs[1])]))
    largest = max(sizes, default=0.0)
    return sum(sizes) / largest if largest else 0.0


def _buffer_bytes(data: Any, buffer: Table) -> int:
    _, inline = buffer.span(0, 1)
    at, size = buffer.number(1, "Q"), buffer.number(2, "Q")
    if at > 1:  # the data lies behind the FlatBuffer; 0 and 1 mean that it does not
        if at + size > len(data):
            raise FlatBufferError(f"a buffer of {size} bytes at {at}; there are {len(data)}")
        return size
    return inline


def _operator_name(code: Table) -> str:
    old, new = code.number(0, "b"), code.number(3, "i")
    number = max(old, new)  # the byte came first and saturates at 127
    if number < 0:
        raise FlatBufferError(f"an operator of number {number}")
    return code.text(1) or operator_name(number)


def _check_subgraph(subgraph: Table, buffers: list[int], n_codes: int) -> int:
    """Check one graph; returns its number of tensors."""
    n_tensors = 0
    for tensor in subgraph.tables(0, _MAX_TENSORS):
        _check_tensor(tensor, buffers)
        n_tensors += 1
    for index in (1, 2):
        _check_indices(subgraph.numbers(index, "i", _MAX_PORTS), 0, n_tensors)
    for operator in subgraph.tables(3, _MAX_OPERATORS):
        _below(operator.number(0, "I"), n_codes, "operator code")
        _check_indices(operator.numbers(1, "i", _MAX_PORTS), -1, n_tensors)  # -1: left out
        _check_indices(operator.numbers(2, "i", _MAX_PORTS), 0, n_tensors)
        _check_indices(operator.numbers(8, "i", _MAX_PORTS), 0, n_tensors)
        operator.span(5, 1)
        options = operator.table(4)
        member = operator.number(3, "B")
        if options is not None and member in _OPTION_LISTS:
            options.span(_OPTION_LISTS[member], 4)
        operator.table(12)
    subgraph.text(4)
    return n_tensors


def _check_tensor(tensor: Table, buffers: list[int]) -> None:
    shape = tensor.numbers(0, "i", _MAX_RANK)
    tensor.numbers(7, "i", _MAX_RANK)
    kind, buffer = tensor.number(1, "b"), tensor.number(2, "I")
    _below(buffer, max(1, len(buffers)), "buffer")
    tensor.text(3)
    if any(size < 0 for size in shape):
        raise FlatBufferError(f"a tensor of shape {shape}")
    n_elements = 1
    for size in shape:
        n_elements *= int(size)
        if n_elements > 1 << 48:
            raise FlatBufferError(f"a tensor of shape {shape}")
    if kind not in _TYPE_BITS and kind not in _UNSIZED:
        raise FlatBufferError(f"a tensor of type {kind}")
    has = buffers[buffer] if buffers else 0
    if has and kind in _TYPE_BITS and tensor.table(6) is None:
        need = (n_elements * _TYPE_BITS[kind] + 7) // 8
        if has < need:
            raise FlatBufferError(f"{has} bytes for a tensor that takes {need}")
    quantization = tensor.table(4)
    if quantization is None:
        return
    _, scale_bytes = quantization.span(2, 4)
    for index, item in ((0, 4), (1, 4), (3, 8)):
        quantization.span(index, item)
    details = quantization.table(5)
    axis, n_scales = quantization.number(6, "i"), scale_bytes // 4
    fits = 0 <= axis < len(shape) and shape[axis] == n_scales
    if n_scales > 1 and details is None and not fits:
        raise FlatBufferError(f"{n_scales} scales along axis {axis} of shape {shape}")
    if details is not None and quantization.number(4, "B") == 2:  # BlockwiseQuantization
        for index in (0, 1):
            # Tensors with scales and zero points; -1 or 0: none. The runtime looks them up.
            if details.number(index, "i") < -1:
                raise FlatBufferError("a block-wise scale of no tensor")


def _signatures(model: Table, n_tensors: list[int]) -> Iterator[str]:
    for signature in model.tables(7, _MAX_SIGNATURES):
        subgraph = signature.number(4, "I")
        _below(subgraph, len(n_tensors), "subgraph")
        for index in (0, 1):
            for port in signature.tables(index, _SIGNATURE_PORTS):
                port.text(0)
                _below(port.number(1, "I"), n_tensors[subgraph], "tensor")
        yield signature.text(2)


def _check_indices(indices: tuple[int | float, ...], low: int, high: int) -> None:
    if indices and not (low <= min(indices) and max(indices) < high):
        raise FlatBufferError(f"tensors {min(indices)} to {max(indices)} of {high}")


def _below(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise FlatBufferError(f"{what} {index} of {count}")
