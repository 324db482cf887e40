"""Matrices to TFLite's weight types: int8 and int4 per row, int4 per block of a row.

Symmetric, as XNNPACK's kernels want them: w ≈ scale · q, no zero points, scales positive. A row is
an output of a FULLY_CONNECTED or an entry of an EMBEDDING_LOOKUP. Formats, as ai-edge-quantizer 0.9
writes them (transformations/quantize_tensor.py): two 4-bit values per byte, the first in the low
half; scales of blocks are float16 numbers with no more than bfloat16's 7 bits of mantissa.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from boardfit.converters.formats.litert.recipe import WeightType

# Scales of blocks are computed with as bfloat16, stored as float16: the smallest normal one.
_SMALLEST_SCALE = 2.0**-14
# Fractions of the largest magnitude that are tried as the end of the range. With q in -8…7 a range
# a little beyond the maximum costs nothing on the negative side, hence the values over 1.
_FRACTIONS = tuple(np.linspace(0.60, 1.08, 17))
_ROWS_AT_ONCE = 1 << 21  # elements


@dataclass(frozen=True)
class Quantized:
    """`data` as stored, `scales` float32 [rows] or [rows, blocks]."""

    data: np.ndarray
    scales: np.ndarray


def choose_scales(
    weight: torch.Tensor, kind: WeightType, method: str, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """Scales for a float32 matrix [rows, n], [rows, n_blocks] (n_blocks is 1 for per-row types).

    `method`: `minmax` covers the largest magnitude; `mse` minimizes the squared error, each column
    weighted by `importance` [n] if given, over a grid of ranges and then by least squares.
    """
    rows, n = weight.shape
    block = kind.block_size or n
    groups = weight.reshape(rows, n // block, block)
    largest = groups.abs().amax(-1)
    if method == "minmax":
        return storable(largest / kind.q_max, kind)
    h = None if importance is None else importance.reshape(1, n // block, block)
    best = storable(largest / kind.q_max, kind)
    best_error = _error(groups, best, kind, h)
    for fraction in _FRACTIONS:
        candidate = storable(largest * (fraction / kind.q_max), kind)
        _keep_better(groups, candidate, best, best_error, kind, h)
    # Least squares for the integers that the best range gives: s = Σ h w q / Σ h q².
    q = _round(groups, best, kind)
    qh = q if h is None else q * h
    top, bottom = (groups * qh).sum(-1), (q * qh).sum(-1)
    fitted = storable(torch.where(bottom > 0, top / bottom.clamp(min=1e-30), best), kind)
    _keep_better(groups, fitted, best, best_error, kind, h)
    return best


def storable(scales: torch.Tensor, kind: WeightType) -> torch.Tensor:
    """Scales as the file can hold them; never zero, so that a row of zeros divides by something."""
    if kind.block_size:
        return scales.to(torch.bfloat16).to(torch.float32).clamp(_SMALLEST_SCALE, 65504.0)
    return scales.clamp(min=1e-12)


def _keep_better(
    groups: torch.Tensor,
    candidate: torch.Tensor,
    best: torch.Tensor,
    best_error: torch.Tensor,
    kind: WeightType,
    h: torch.Tensor | None,
) -> None:
    error = _error(groups, candidate, kind, h)
    better = error < best_error
    best[better] = candidate[better]
    best_error[better] = error[better]


def _round(groups: torch.Tensor, scales: torch.Tensor, kind: WeightType) -> torch.Tensor:
    return (groups / scales.unsqueeze(-1)).round_().clamp_(kind.q_min, kind.q_max)


def _error(
    groups: torch.Tensor, scales: torch.Tensor, kind: WeightType, h: torch.Tensor | None
) -> torch.Tensor:
    difference = _round(groups, scales, kind).mul_(scales.unsqueeze(-1)).sub_(groups).square_()
    return (difference if h is None else difference.mul_(h)).sum(-1)


def quantize_matrix(
    read: Callable[[int, int], torch.Tensor], shape: tuple[int, int], kind: WeightType, method: str
) -> Quantized:
    """Quantize a matrix whose rows `read(start, stop)` gives as float32, a few at a time."""
    rows, n = shape
    blocks = n // (kind.block_size or n)
    data = np.empty(kind.data_bytes(rows * n), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(2, _ROWS_AT_ONCE // n // 2 * 2)
    if kind.per_tensor:
        whole = max(float(read(i, min(i + step, rows)).abs().max()) for i in range(0, rows, step))
        scales[:] = max(whole / kind.q_max, 1e-12)
    per_row = kind.data_bytes(n)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        weight = read(start, stop)
        if kind.per_tensor:
            chosen = torch.from_numpy(scales[start:stop])
        else:
            chosen = choose_scales(weight, kind, method)
            scales[start:stop] = chosen.numpy()
        q = _round(weight.reshape(stop - start, blocks, -1), chosen, kind)
        data[start * per_row : stop * per_row] = pack(q.to(torch.int8).numpy().ravel(), kind)
    return Quantized(data, scales)


def pack(q: np.ndarray, kind: WeightType) -> np.ndarray:
    """Integers [n] as bytes; n is even for 4-bit types."""
    if kind.bits == 8:
        return q.view(np.uint8)
    low, high = q[0::2].view(np.uint8) & 15, q[1::2].view(np.uint8) & 15
    return low | (high << 4)
