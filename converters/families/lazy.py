"""Tensors whose rows are computed when they are read: dequantized weights, merged adapters.

`LazyRows` stands where a family expects a numpy array. Slices, row lists and reshapes that keep
rows whole stay lazy, so that one slab of rows is computed at a time. Everything else computes all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from boardfit.converters.families.layout import SourceTensor, matrix, to_f32
from boardfit.edge.files.ggml_types import row_bytes

# Flat row numbers → these rows as float32, one row each.
ComputeRows = Callable[[np.ndarray], np.ndarray]


class LazyRows:
    """An array of shape `(*rows.shape, width)`; entry `rows[i]` is the number of row `i`."""

    def __init__(
        self, compute: ComputeRows, rows: np.ndarray, width: int, dtype: Any = np.float32
    ) -> None:
        self._compute, self._rows, self._width = compute, rows, width
        self.dtype = np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self._rows.shape, self._width)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: Any) -> Any:
        """The same values in another shape; lazy where a row stays a row."""
        wanted = tuple(shape[0]) if isinstance(shape[0], (tuple, list)) else shape
        if -1 in wanted:
            known = math.prod(extent for extent in wanted if extent != -1)
            wanted = tuple(self.size // known if e == -1 and known else e for e in wanted)
        if len(wanted) < 2 or wanted[-1] != self._width:
            return np.asarray(self).reshape(wanted)
        return self._of(self._rows.reshape(wanted[:-1]))

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) == self.ndim and isinstance(keys[-1], slice) and keys[-1] == slice(None):
            keys = keys[:-1]
        if len(keys) >= self.ndim or any(k is None or k is Ellipsis for k in keys):
            return np.asarray(self)[key]
        return self._of(np.asarray(self._rows[keys]))

    def _of(self, rows: np.ndarray) -> LazyRows:
        return LazyRows(self._compute, rows, self._width, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self._compute(self._rows.reshape(-1)).reshape(self.shape)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __getattr__(self, name: str) -> Any:
        """Anything else that an array has, of the computed values."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)


def lazy_tensor(
    name: str, shape: tuple[int, ...], compute: ComputeRows, mxfp4: ComputeRows | None = None
) -> SourceTensor:
    """A source tensor of float32 rows that `compute` makes; `mxfp4` makes them as ggml's blocks."""
    rows = np.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    data = cast(np.ndarray, LazyRows(compute, rows, shape[-1]))
    if mxfp4 is None:
        return SourceTensor(name, "F32", shape, data)
    blocks = LazyRows(mxfp4, rows, row_bytes("MXFP4", shape[-1]), np.uint8)
    return SourceTensor(name, "F32", shape, data, cast(np.ndarray, blocks))


def as_floats(source: SourceTensor) -> SourceTensor:
    """The same tensor as float32, widened when rows are read."""
    if source.dtype == "F32":
        return source
    rows = matrix(source)
    return lazy_tensor(source.name, source.shape, lambda chosen: to_f32(rows[chosen], source.dtype))
