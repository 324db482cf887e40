"""Quantize in one pass: tensors from the mapped checkpoint, through ggml's quantizers, to their
place. Slabs of rows are converted by a pool of threads and written in order by the caller's thread,
so that memory stays bounded regardless of the model's size.
"""

import mmap
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from boardfit.converters.formats.gguf.header import FileLayout
from boardfit.converters.formats.gguf.imatrix import Imatrix
from boardfit.converters.formats.gguf.kernels import GgmlKernels
from boardfit.converters.formats.gguf.recipe import GgufRecipe
from boardfit.converters.formats.gguf.resume import PartialFile
from boardfit.converters.spec import TargetTensor
from boardfit.edge.errors import InputError
from boardfit.edge.files.ggml_types import row_bytes
from boardfit.edge.terminal.progress import Progress

# Values converted at a time by one thread: 4 MiB as float32, small enough for the caches and large
# enough that the interpreter's share vanishes.
_SLAB_VALUES = 1024 * 1024


@dataclass
class FilePlan:
    """One output of a pass: its layout, and the type that each step's tensor gets."""

    recipe: GgufRecipe
    out: Path
    layout: FileLayout
    steps: list[int]
    types: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.types = [self.layout.tensors[index].type for index in self.steps]


@dataclass(frozen=True)
class _Slab:
    """Rows `start` to `stop` of the tensor of one step, all of one expert."""

    step: int
    tensor: TargetTensor
    start: int
    stop: int

    @property
    def n_values(self) -> int:
        return (self.stop - self.start) * self.tensor.n_per_row


@dataclass(frozen=True)
class _Converted:
    slab: _Slab
    rows: np.ndarray
    by_type: Mapping[str, np.ndarray]


def run_pass(
    plans: Sequence[FilePlan],
    files: Sequence[PartialFile],
    kernels: GgmlKernels,
    imatrix: Imatrix | None,
    n_threads: int,
    progress: Progress | None,
) -> None:
    """Bring every tensor that `files` lack into them. All `plans` have the same steps."""
    steps = [plans[0].layout.tensors[index].tensor for index in plans[0].steps]
    first = min(file.n_done for file in files)
    total = sum(tensor.n_elements for tensor in steps)
    done = sum(tensor.n_elements for tensor in steps[:first])
    # types wanted of each step, by the outputs that do not have it yet
    n_done = [file.n_done for file in files]
    wanted = [
        {plan.types[step] for plan, skip in zip(plans, n_done, strict=True) if step >= skip}
        for step in range(len(steps))
    ]
    worker = _Worker(kernels, imatrix, wanted)
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="quantize")
    in_flight: deque[Future[_Converted]] = deque()
    slabs = _split_slabs(steps, first)
    try:
        while True:
            # enough in flight that a slow slab in front does not idle the others
            while len(in_flight) < 3 * n_threads and (following := next(slabs, None)) is not None:
                in_flight.append(pool.submit(worker.convert, following))
            if not in_flight:
                return
            converted = in_flight.popleft().result()
            slab = converted.slab
            for plan, file in zip(plans, files, strict=True):
                if file.n_done <= slab.step:
                    type_name = plan.types[slab.step]
                    offset = slab.start * row_bytes(type_name, slab.tensor.n_per_row)
                    file.write(slab.step, offset, converted.by_type[type_name])
            release(converted.rows)
            done += slab.n_values
            if progress is not None:
                progress(done, total)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_values(
    tensors: Sequence[TargetTensor], kernels: GgmlKernels, n_threads: int, progress: Progress | None
) -> None:
    """Read every tensor and convert none. Raises InputError for NaN or infinity, as a pass does."""
    worker = _Worker(kernels, None, [frozenset[str]()] * len(tensors))
    total, done = sum(tensor.n_elements for tensor in tensors), 0
    with ThreadPoolExecutor(n_threads, thread_name_prefix="check") as pool:
        for converted in pool.map(worker.convert, _split_slabs(tensors, 0)):
            release(converted.rows)
            done += converted.slab.n_values
            if progress is not None:
                progress(done, total)


def _split_slabs(steps: Sequence[TargetTensor], first: int) -> Iterator[_Slab]:
    for step, tensor in enumerate(steps[first:], first):
        rows_per_expert = tensor.shape[-2] if len(tensor.shape) > 1 else 1
        n_rows = max(1, _SLAB_VALUES // tensor.n_per_row)
        for expert in range(0, tensor.n_rows, rows_per_expert):
            end = expert + rows_per_expert
            for start in range(expert, end, n_rows):
                yield _Slab(step, tensor, start, min(start + n_rows, end))


class _Worker:
    """Converts slabs, on any thread; each thread keeps one float32 buffer."""

    def __init__(
        self, kernels: GgmlKernels, imatrix: Imatrix | None, wanted: Sequence[Set[str]]
    ) -> None:
        self._kernels, self._imatrix, self._wanted = kernels, imatrix, wanted
        self._local = threading.local()

    def convert(self, slab: _Slab) -> _Converted:
        tensor, n = slab.tensor, slab.n_values
        rows = _read(slab)
        by_type: dict[str, np.ndarray] = {}
        values: np.ndarray | None = None
        if self._kernels.can_dequantize(tensor.source_type):
            values = self._kernels.to_float(tensor.source_type, rows, n, self._buffer(n))
            if not np.isfinite(values).all():
                raise _not_finite(slab, values)
        for type_name in self._wanted[slab.step]:
            if type_name == tensor.source_type:
                by_type[type_name] = rows
            elif values is None:
                raise InputError(
                    f"tensor {tensor.name} is stored as {tensor.source_type}, which cannot be "
                    f"converted to {type_name}"
                )
            else:
                weights = _imatrix_row(self._imatrix, slab)
                data = self._kernels.quantize(type_name, values, tensor.n_per_row, weights)
                if not self._kernels.is_valid(type_name, data):
                    raise InputError(
                        f"tensor {tensor.name} (from {tensor.origin or 'the source'}) holds values "
                        f"too large for {type_name}: up to {np.abs(values).max():.3g}",
                        next_step="Choose a recipe with a wider range, such as bf16.",
                    )
                by_type[type_name] = data
        return _Converted(slab, rows, by_type)

    def _buffer(self, n: int) -> np.ndarray:
        buffer: np.ndarray | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.size < n:
            buffer = self._local.buffer = np.empty(max(n, _SLAB_VALUES), np.float32)
        return buffer


def _read(slab: _Slab) -> np.ndarray:
    tensor = slab.tensor
    rows = np.ascontiguousarray(tensor.read(slab.start, slab.stop))
    expected = (slab.stop - slab.start) * row_bytes(tensor.source_type, tensor.n_per_row)
    if rows.nbytes != expected:
        raise InputError(
            f"tensor {tensor.name} (from {tensor.origin or 'the source'}): rows {slab.start} to "
            f"{slab.stop} have {rows.nbytes} bytes, expected {expected}; the file may be cut short"
        )
    return rows


def _imatrix_row(imatrix: Imatrix | None, slab: _Slab) -> np.ndarray | None:
    if imatrix is None:
        return None
    tensor = slab.tensor
    n_experts = tensor.shape[-3] if len(tensor.shape) > 2 else 1
    weights = imatrix.weights_for(tensor.name, n_experts, tensor.n_per_row)
    return None if weights is None else weights[slab.start // tensor.shape[-2]]


def _not_finite(slab: _Slab, values: np.ndarray) -> InputError:
    where = int(np.flatnonzero(~np.isfinite(values))[0])
    row, column = divmod(where, slab.tensor.n_per_row)
    return InputError(
        f"tensor {slab.tensor.name} (from {slab.tensor.origin or 'the source'}) holds "
        f"{values[where]} at row {slab.start + row}, column {column}: the checkpoint is damaged, "
        "or training diverged",
        next_step="Download the checkpoint again, or ask its author.",
    )


def release(rows: np.ndarray) -> None:
    """Release the pages of these rows of a read-only mapped file, so that a 20 GB checkpoint does
    not fill the resident set. Other arrays are left alone: dropping pages of other memory would
    lose data.
    """
    root = _find_mapping(rows)
    if root is None or not hasattr(root, "madvise") or not rows.flags.c_contiguous:
        return
    base = np.frombuffer(root, np.uint8).ctypes.data
    start = rows.ctypes.data - base
    # whole pages only; the one that the next rows begin in is still wanted
    first = start - start % mmap.PAGESIZE
    last = (start + rows.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        root.madvise(mmap.MADV_DONTNEED, first, last - first)


def _find_mapping(array: np.ndarray) -> mmap.mmap | None:
    holder: object = array
    while isinstance(holder, np.ndarray):
        if holder.flags.writeable:
            return None
        holder = holder.base
    if isinstance(holder, memoryview):
        holder = holder.obj
    return holder if isinstance(holder, mmap.mmap) else None
