"""Weight types of TFLite models by name: what a recipe may ask for. Standard library only.

int8       one scale per row            8 bits + 12 bytes per row
int8-t     one scale for the matrix     what tflite-runtime 2.14 can look embeddings up in
int4       one scale per row
int4-b32   one bfloat16 scale per 32 values (also 64, 128): 4.5, 4.25, 4.125 bits
f32        as it is
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The kinds of file that LiteRT models come in.
Flavour = Literal["litertlm", "tflite"]


@dataclass(frozen=True)
class WeightType:
    """How the values of a matrix are stored. `block_size` 0 is one scale per row (or matrix)."""

    name: str
    bits: int
    block_size: int = 0
    per_tensor: bool = False

    @property
    def q_min(self) -> int:
        """All 16 values of 4 bits: XNNPACK's kernels take -8, and without it the sample model
        diverges by 0.130 instead of 0.105 (litert_int4_b32_best). 8 bits are symmetric.
        """
        return -8 if self.bits == 4 else -127

    @property
    def q_max(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def data_bytes(self, n_elements: int) -> int:
        return (n_elements * self.bits + 7) // 8

    def total_bytes(self, rows: int, n_per_row: int) -> int:
        """Bytes in the file: values and scales. A row's scale is a float with an int64 zero point
        beside it; a block's is 2 bytes.
        """
        data = self.data_bytes(rows * n_per_row)
        if self.bits == 32:
            return data
        if self.block_size:
            return data + 2 * rows * (n_per_row // self.block_size)
        return data + 12 * (1 if self.per_tensor else rows)


WEIGHT_TYPES = {
    t.name: t
    for t in (
        WeightType("int8", 8),
        WeightType("int8-t", 8, per_tensor=True),
        WeightType("int4", 4),
        WeightType("int4-b32", 4, 32),
        WeightType("int4-b64", 4, 64),
        WeightType("int4-b128", 4, 128),
        WeightType("f32", 32),
    )
}
