"""The values, value types and tensors of a checked GGUF header."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from boardfit.edge.errors import InputError

# Names of GGUF's value types, by id.
TYPE_NAMES = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64",
)  # fmt: skip


@dataclass(frozen=True)
class GgufArray:
    """An array that was checked and skipped: its number of items, and their place in the file."""

    item_type: str
    count: int
    offset: int
    nbytes: int

    def __len__(self) -> int:
        return self.count


GgufValue: TypeAlias = "bool | int | float | str | GgufArray | list[Any]"


class KvType(NamedTuple):
    """GGUF value type ids of one entry; `item_type` is set for arrays only."""

    value_type: int
    item_type: int | None = None


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. `dims[0]` (ne[0]) is the row length; `offset` counts from `data_offset`."""

    name: str
    dims: tuple[int, ...]
    type_name: str
    type_id: int
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.dims)


@dataclass(frozen=True)
class GgufHeader:
    """A checked header, in file order. `trailing_bytes` lie behind the last tensor: harmless."""

    version: int
    alignment: int
    kv: Mapping[str, GgufValue]
    kv_types: Mapping[str, KvType]
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    file_size: int
    trailing_bytes: int = 0
    notes: tuple[str, ...] = ()

    def get(self, key: str, default: Any = None) -> Any:
        return self.kv.get(key, default)

    def text(self, key: str) -> str | None:
        """A string value, or None if the key is absent. Raises InputError for any other type."""
        value = self.kv.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"GGUF key {key!r}: expected a string, got {self._name_type(key)}")
        return value

    def integer(self, key: str) -> int | None:
        """An integer value, or None if the key is absent. Raises InputError for any other type."""
        value = self.kv.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InputError(f"GGUF key {key!r}: expected an integer, got {self._name_type(key)}")
        return value

    @property
    def arch(self) -> str:
        """`general.architecture`. Raises InputError if the file has none."""
        arch = self.text("general.architecture")
        if not arch:
            raise InputError(
                "the GGUF file names no architecture (key general.architecture): "
                "it is not a language model, or was written by a broken tool"
            )
        return arch

    @property
    def split_count(self) -> int:
        """Number of files that the model is split into; 1 for a whole model."""
        return max(1, self.integer("split.count") or 1)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, padding not counted."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def _name_type(self, key: str) -> str:
        return TYPE_NAMES[self.kv_types[key].value_type]
