"""ggml's tensor types: id, values per block, bytes per block, by the names of the `gguf` package.

Source of `ggml_types.json`: `ggml/include/ggml.h` (enum ggml_type), `ggml/src/ggml-common.h`.
"""

import json
import pkgutil
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


_TABLE = json.loads(pkgutil.get_data(__package__, "ggml_types.json") or "")
GGML_TYPES = {name: GgmlType(*row) for name, row in _TABLE["types"].items()}
# Ids that ggml gave out and took back; a file that uses one must be made again.
REMOVED_TYPES: dict[int, str] = {int(key): name for key, name in _TABLE["removed"].items()}

# Ids of ggml's forks. A file that uses one is whole, and made for that program.
BITNET_I2_S = 36
IK_LLAMA_TYPES = range(97, 400)

GGML_TYPE_NAMES: dict[int, str] = {entry.id: name for name, entry in GGML_TYPES.items()}


def row_bytes(type_name: str, n: int) -> int:
    """Bytes of one row of `n` values in a ggml type. Raises InputError for an unknown type, or
    when `n` is not a whole number of blocks.
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
