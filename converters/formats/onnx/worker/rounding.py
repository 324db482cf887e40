"""Blocks of weights to 4 or 8 bits, as ONNX Runtime's MatMulNBits stores them.

A row of K weights is cut into blocks along K. Of each block, w ≈ scale · (q − zero), with q and
zero unsigned integers of `bits` bits; a symmetric block has zero = 2^(bits−1), which is not stored.
Layout: the operator's description, docs/ContribOperators.md of onnxruntime, `MatMulNBits`.

The plain way takes the scale from the block's extremes. `search` tries narrower ranges too, refits
the scale by least squares, and keeps what leaves the least square error, counted with
the scale as it will be stored: in half precision, half the bytes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 18  # weights worked on at once: what a core's cache holds
#: Ranges tried, as shares of the block's own. Beyond these no block of a trained model was better.
_SHARES = np.linspace(1.0, 0.72, 8, dtype=np.float32)
_TINY = np.float32(6.2e-5)  # smallest normal half-precision number


@dataclass(frozen=True)
class Blocks:
    """A quantized matrix of N rows: `codes` [N, n_blocks, block·bits/8] uint8, `scales`
    [N, n_blocks] float16 or float32, `zeros` [N, ceil(n_blocks·bits/8)] uint8 or None.
    """

    codes: Array
    scales: Array
    zeros: Array | None
    bits: int
    block: int
    n_columns: int


def quantize(weights: Array, *, bits: int, block: int, symmetric: bool, search: bool) -> Blocks:
    """Quantize float32 `weights` [N, K] to 4 or 8 bits, in blocks of a power of two from 16."""
    n_rows, n_columns = weights.shape
    n_blocks = -(-n_columns // block)
    padding = n_blocks * block - n_columns
    codes = np.empty((n_rows, n_blocks, block * bits // 8), np.uint8)
    scales = np.empty((n_rows, n_blocks), np.float16)
    zeros = None if symmetric else np.empty((n_rows, n_blocks), np.uint8)
    step = max(1, _CHUNK // max(1, n_blocks * block))
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        part = np.ascontiguousarray(weights[rows], dtype=np.float32)
        part = np.pad(part, ((0, 0), (0, padding))).reshape(-1, n_blocks, block)
        choose = _symmetric if symmetric else _asymmetric
        scale, zero = choose(part, bits, _SHARES if search else _SHARES[:1])
        codes[rows] = _pack(_round(part, scale, zero, bits), bits)
        scales[rows] = scale[..., 0]
        if zeros is not None:
            zeros[rows] = zero[..., 0]
    return Blocks(codes, scales, _pack_zeros(zeros, bits), bits, block, n_columns)


def _round_scale(scale: Array) -> Array:
    """The scale as it will be read back, and never 0: a block of zeros needs no scale."""
    scale = np.where(np.abs(scale) < _TINY, _TINY, scale)
    return np.clip(scale, -65504, 65504).astype(np.float16).astype(np.float32)


def _symmetric(x: Array, bits: int, shares: Array) -> tuple[Array, Array]:
    """Scale and zero [rows, blocks, 1]. The extreme of a block may lie at either end of the codes:
    with 4 bits they reach from −8 to 7, so the sign of the scale is part of the choice.
    """
    middle = np.float32(1 << (bits - 1))
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)
    zero = np.full_like(extreme, middle)
    ends = (-middle, middle - 1) if len(shares) > 1 and bits == 4 else (-middle,)
    candidates = ((extreme * np.float32(s / end), zero) for s in shares for end in ends)
    return _choose(x, bits, candidates, refit=len(shares) > 1)


def _asymmetric(x: Array, bits: int, shares: Array) -> tuple[Array, Array]:
    """Scale and zero [rows, blocks, 1]. 0 stays exactly representable."""
    top = np.float32((1 << bits) - 1)
    low = np.minimum(x.min(axis=-1, keepdims=True), 0)
    high = np.maximum(x.max(axis=-1, keepdims=True), 0)

    def candidates() -> Iterator[tuple[Array, Array]]:
        for share in shares:
            scale = _round_scale((high - low) * np.float32(share) / top)
            yield scale, np.clip(np.rint(-low * np.float32(share) / scale), 0, top)

    return _choose(x, bits, candidates(), refit=len(shares) > 1)


def _choose(
    x: Array, bits: int, candidates: Iterable[tuple[Array, Array]], *, refit: bool
) -> tuple[Array, Array]:
    """The candidate (scale, zero) of least square error, block by block, refitted."""
    best: tuple[Array, Array, Array] | None = None
    for scale, zero in candidates:
        scale = _round_scale(scale)
        error = _error(x, bits, scale, zero)
        if best is None:
            best = error, scale, zero
        else:
            better = error < best[0]
            best = (
                np.where(better, error, best[0]),
                np.where(better, scale, best[1]),
                np.where(better, zero, best[2]),
            )
    assert best is not None
    error, scale, zero = best
    if refit:
        fitted = _refit(x, bits, scale, zero)
        scale = np.where(_error(x, bits, fitted, zero) < error, fitted, scale)
    return scale, zero


def _refit(x: Array, bits: int, scale: Array, zero: Array) -> Array:
    """The least-squares scale for the codes that `scale` gives.

    With the steps d = q − zero held, Σ (x − s·d)² is least at s = Σ x·d / Σ d².
    """
    steps = _round(x, scale, zero, bits) - zero
    square = (steps * steps).sum(axis=-1, keepdims=True)
    fitted = (steps * x).sum(axis=-1, keepdims=True) / np.maximum(square, 1e-12)
    return np.where(square > 0, _round_scale(fitted), scale)


def _error(x: Array, bits: int, scale: Array, zero: Array) -> Array:
    left = _round(x, scale, zero, bits)
    left -= zero
    left *= scale
    left -= x
    left *= left
    error: Array = left.sum(axis=-1, keepdims=True)
    return error


def _round(x: Array, scale: Array, zero: Array, bits: int) -> Array:
    codes: Array = x * (np.float32(1) / scale)
    np.rint(codes, out=codes)
    codes += zero
    np.clip(codes, 0, (1 << bits) - 1, out=codes)
    return codes


def _pack(codes: Array, bits: int) -> Array:
    """Codes [..., n] to bytes; of two 4-bit codes the first lies in the low half."""
    codes = codes.astype(np.uint8)
    return codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


def _pack_zeros(zeros: Array | None, bits: int) -> Array | None:
    if zeros is None or bits == 8:
        return zeros
    if zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return _pack(zeros, bits)
