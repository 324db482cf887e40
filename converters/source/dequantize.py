"""From quantized rows to float32 rows: one function per layout, numpy only.

Each function takes the stored tensors and returns a `ComputeRows`. A caller asks for a slab of rows
at a time, so that no weight is ever whole in memory. Shapes are checked before, in `quantized`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from boardfit.converters.families.layout import SourceTensor, matrix, to_f32
from boardfit.converters.families.lazy import ComputeRows

_BYTE = np.arange(256, dtype=np.uint8)
# OCP's FP4 (E2M1), the sign in the highest bit.
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([_FP4, -_FP4])
# Place of each column's nibble in a word (AutoAWQ, `packing_utils.py`: AWQ_REVERSE_ORDER).
_AWQ_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32)


def _decode_e4m3() -> np.ndarray:
    """All values of FP8 E4M3: bias 7, no infinity, NaN where all bits are set."""
    exponent, fraction = (_BYTE >> 3 & 15).astype(np.int32), (_BYTE & 7).astype(np.float32) / 8
    normal = np.ldexp(np.where(exponent > 0, 1 + fraction, fraction), np.maximum(exponent, 1) - 7)
    normal = np.where(_BYTE & 127 == 127, np.nan, normal)
    return np.where(_BYTE & 128, -normal, normal).astype(np.float32)


_TABLES = {
    "F8_E4M3": _decode_e4m3(),
    # The upper half of a float16.
    "F8_E5M2": (_BYTE.astype(np.uint16) << 8).view(np.float16).astype(np.float32),
    # A power of two; 255 is NaN.
    "F8_E8M0": np.where(
        _BYTE < 255, np.ldexp(np.float32(1), np.minimum(_BYTE, 254).astype(np.int32) - 127), np.nan
    ).astype(np.float32),
}


def decode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Stored numbers as float32, exactly."""
    table = _TABLES.get(dtype)
    return to_f32(values, dtype) if table is None else table[values]


def unpack(words: np.ndarray, count: int, bits: int) -> Any:
    """The first `count` numbers of `bits` bits in each row of 32-bit words, lowest bits first."""
    words = np.ascontiguousarray(words).view(np.uint32)
    if 8 % bits == 0:
        per_byte, octets = 8 // bits, words.view(np.uint8)
        found = np.empty((len(words), octets.shape[1] * per_byte), np.uint8)
        for place in range(per_byte):
            found[:, place::per_byte] = octets >> (place * bits) & ((1 << bits) - 1)
        return found[:, :count]
    return take_bits(words, np.arange(count), bits)


def take_bits(words: np.ndarray, numbers: np.ndarray, bits: int) -> Any:
    """The numbers of `bits` bits at these places of each row; they may straddle two words."""
    first = numbers * bits // 32
    following = np.minimum(first + 1, words.shape[1] - 1)
    pair = words[:, first].astype(np.uint64) | words[:, following].astype(np.uint64) << np.uint64(
        32
    )
    shifted: np.ndarray = pair >> (numbers * bits % 32).astype(np.uint64)
    return (shifted & np.uint64((1 << bits) - 1)).astype(np.uint8)


def repeat_columns(groups: np.ndarray, size: int, width: int) -> np.ndarray:
    """One value per group of columns → one per column; one for all is left to broadcast."""
    return groups if size >= width else np.repeat(groups, size, axis=1)[:, :width]


@dataclass(frozen=True)
class BlockScales:
    """One scale per block of rows and columns, times `factor`; matrices have `height` rows."""

    scale: SourceTensor
    height: int
    n_rows: int
    n_columns: int
    factor: float = 1.0

    def chosen(self, rows: np.ndarray, width: int) -> Any:
        """The scales of these rows, as columns of their own or to be broadcast."""
        per_matrix = -(-self.height // self.n_rows)
        found = self.scale.data.reshape(-1, -(-width // self.n_columns))
        found = found[rows // self.height * per_matrix + rows % self.height // self.n_rows]
        scales = decode(found, self.scale.dtype) * np.float32(self.factor)
        return repeat_columns(scales, self.n_columns, width)


def scaled_rows(
    weight: SourceTensor, scales: BlockScales, zeros: BlockScales | None = None
) -> ComputeRows:
    """FP8 or int8 numbers times the scales of their blocks."""
    stored = matrix(weight)

    def compute(rows: np.ndarray) -> Any:
        values = decode(stored[rows], weight.dtype)
        if zeros is not None:
            values = values - zeros.chosen(rows, values.shape[1])
        return values * scales.chosen(rows, values.shape[1])

    return compute


def fp4_rows(packed: np.ndarray, scales: BlockScales) -> ComputeRows:
    """Two FP4 numbers per byte, the lower half first, times the scales of their blocks."""

    def compute(rows: np.ndarray) -> Any:
        octets = packed[rows]
        values = np.stack([FP4[octets & 15], FP4[octets >> 4]], axis=-1).reshape(len(rows), -1)
        return values * scales.chosen(rows, values.shape[1])

    return compute


def mxfp4_blocks(packed: np.ndarray, exponents: np.ndarray) -> ComputeRows:
    """The rows of `fp4_rows` as ggml's `block_mxfp4`: an exponent, then 16 bytes, of which byte `i`
    holds number `i` in its lower half and number `i + 16` in its upper.
    """

    def compute(rows: np.ndarray) -> Any:
        octets, scales = packed[rows], exponents[rows]
        codes = np.stack([octets & 15, octets >> 4], axis=-1).reshape(*scales.shape, 2, 16)
        halves = codes[..., 0, :] | codes[..., 1, :] << 4
        return np.concatenate([scales[..., None], halves], axis=-1).reshape(len(rows), -1)

    return compute


# -- numbers, scales and zeros of some rows ------------------------------------------------------


def along_rows(words: np.ndarray, bits: int, width: int) -> ComputeRows:
    """Numbers in words along a row (compressed-tensors, MLX)."""
    return lambda rows: unpack(words[rows], width, bits)


def down_columns(words: np.ndarray, bits: int, width: int) -> ComputeRows:
    """Numbers in words down a column of input (GPTQ)."""
    return lambda rows: unpack(words[:, rows].T, width, bits)


def across_rows(words: np.ndarray, bits: int, offset: int = 0) -> ComputeRows:
    """Numbers of several rows in a word: zeros of GPTQ, which are stored less `offset`."""
    return lambda rows: take_bits(words.view(np.uint32), rows, bits).T.astype(np.int32) + offset


def awq_numbers(words: np.ndarray) -> ComputeRows:
    """AWQ's `gemm` layout: eight outputs of one input in a word, in the order 0 2 4 6 1 3 5 7."""

    def read(rows: np.ndarray) -> Any:
        found = words.view(np.uint32)[:, rows // 8] >> _AWQ_PLACES[rows % 8] * np.uint32(4)
        return (found & np.uint32(15)).T

    return read


def signed_nibbles(packed: np.ndarray) -> ComputeRows:
    """torchao's `Int4Tensor`: signed numbers, the lower half of a byte first."""

    def read(rows: np.ndarray) -> Any:
        octets = packed[rows].view(np.uint8)
        codes = np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(rows), -1)
        return (codes ^ 8).astype(np.float32) - 8

    return read


def by_row(groups: SourceTensor) -> ComputeRows:
    """Floats that are stored as [rows, groups]."""
    stored = matrix(groups)
    return lambda rows: decode(stored[rows], groups.dtype)


def by_group(groups: SourceTensor) -> ComputeRows:
    """Floats that are stored as [groups, rows]."""
    return lambda rows: decode(groups.data[:, rows].T, groups.dtype)


def grouped_rows(
    numbers: ComputeRows, scales: ComputeRows, zeros: ComputeRows | int, groups: np.ndarray
) -> ComputeRows:
    """Number less zero, times scale; `groups` is each column's group."""

    def compute(rows: np.ndarray) -> Any:
        zero = zeros if isinstance(zeros, int) else zeros(rows).astype(np.int32)[:, groups]
        steps = numbers(rows).astype(np.int32) - zero
        return steps.astype(np.float32) * scales(rows)[:, groups]

    return compute


def affine_rows(
    numbers: ComputeRows, scales: ComputeRows, offsets: ComputeRows, groups: np.ndarray
) -> ComputeRows:
    """Number times scale, plus a float for the group."""
    return lambda rows: numbers(rows) * scales(rows)[:, groups] + offsets(rows)[:, groups]


@dataclass(frozen=True)
class NestedScales:
    """bitsandbytes' scales: float32, or bytes: `code` values times `outer`, plus `offset`."""

    absmax: np.ndarray
    code: np.ndarray | None = None
    outer: np.ndarray | None = None
    block: int = 1
    offset: float = 0.0

    def chosen(self, numbers: np.ndarray) -> Any:
        found = self.absmax[numbers]
        if self.code is None or self.outer is None:
            return found.astype(np.float32, copy=False)
        return self.code[found] * self.outer[numbers // self.block] + np.float32(self.offset)


def bnb_rows(
    octets: np.ndarray, code: np.ndarray, scales: NestedScales, block: int, width: int
) -> ComputeRows:
    """bitsandbytes' nf4 and fp4: two numbers per byte, the upper half first, row after row."""

    def compute(rows: np.ndarray) -> Any:
        first = rows[:, None] * width
        if width % 2:
            numbers = first + np.arange(width)
            codes = np.where(numbers & 1, octets[numbers >> 1] & 15, octets[numbers >> 1] >> 4)
        else:
            pairs = octets.reshape(-1, width // 2)[rows]
            codes = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(len(rows), width)
        if width % block:
            return code[codes] * scales.chosen((first + np.arange(width)) // block)
        blocks = scales.chosen((first + np.arange(0, width, block)) // block)
        return code[codes] * np.repeat(blocks, block, axis=1)

    return compute
