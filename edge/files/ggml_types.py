"""ggml's tensor types: id, values per block, bytes per block.

The table is upstream's `ggml/include/ggml.h` (enum ggml_type) with the block sizes of
`ggml/src/ggml-common.h`; names are those of the `gguf` package.
"""

from __future__ import annotations

from typing import NamedTuple

from boardfit.edge.errors import InputError
from boardfit.edge.units import did_you_mean


class GgmlType(NamedTuple):
    """One ggml type: `block_size` values are stored in `type_size` bytes."""

    id: int
    block_size: int
    type_size: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size


GGML_TYPES: dict[str, GgmlType] = {
    "F32": GgmlType(0, 1, 4),
    "F16": GgmlType(1, 1, 2),
    "Q4_0": GgmlType(2, 32, 18),
    "Q4_1": GgmlType(3, 32, 20),
    "Q5_0": GgmlType(6, 32, 22),
    "Q5_1": GgmlType(7, 32, 24),
    "Q8_0": GgmlType(8, 32, 34),
    "Q8_1": GgmlType(9, 32, 36),
    "Q2_K": GgmlType(10, 256, 84),
    "Q3_K": GgmlType(11, 256, 110),
    "Q4_K": GgmlType(12, 256, 144),
    "Q5_K": GgmlType(13, 256, 176),
    "Q6_K": GgmlType(14, 256, 210),
    "Q8_K": GgmlType(15, 256, 292),
    "IQ2_XXS": GgmlType(16, 256, 66),
    "IQ2_XS": GgmlType(17, 256, 74),
    "IQ3_XXS": GgmlType(18, 256, 98),
    "IQ1_S": GgmlType(19, 256, 50),
    "IQ4_NL": GgmlType(20, 32, 18),
    "IQ3_S": GgmlType(21, 256, 110),
    "IQ2_S": GgmlType(22, 256, 82),
    "IQ4_XS": GgmlType(23, 256, 136),
    "I8": GgmlType(24, 1, 1),
    "I16": GgmlType(25, 1, 2),
    "I32": GgmlType(26, 1, 4),
    "I64": GgmlType(27, 1, 8),
    "F64": GgmlType(28, 1, 8),
    "IQ1_M": GgmlType(29, 256, 56),
    "BF16": GgmlType(30, 1, 2),
    "TQ1_0": GgmlType(34, 256, 54),
    "TQ2_0": GgmlType(35, 256, 66),
    "MXFP4": GgmlType(39, 32, 17),
    "NVFP4": GgmlType(40, 64, 36),
    "Q1_0": GgmlType(41, 128, 18),
    "Q2_0": GgmlType(42, 64, 18),
}

# Ids of ggml's forks. A file that uses one is whole, and made for that program.
BITNET_I2_S = 36
IK_LLAMA_TYPES = range(97, 400)

# Ids that ggml gave out and took back; a file that uses one must be made again.
REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

GGML_TYPE_NAMES: dict[int, str] = {entry.id: name for name, entry in GGML_TYPES.items()}


def row_bytes(type_name: str, n: int) -> int:
    """Bytes of one row of `n` values in ggml type `type_name` (`Q4_K`, `BF16`, …).

    Raises InputError for an unknown type, or when `n` is not a whole number of blocks.
    """
    entry = GGML_TYPES.get(type_name)
    if entry is None:
        raise InputError(f"unknown ggml type {type_name!r}.{did_you_mean(type_name, GGML_TYPES)}")
    if n < 0 or n % entry.block_size:
        raise InputError(
            f"a row of {n} values cannot be stored as {type_name}: "
            f"it takes a multiple of {entry.block_size}"
        )
    return n // entry.block_size * entry.type_size
