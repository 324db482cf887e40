"""Read FlatBuffers (format: `internals.md`) with every offset checked, as far as file headers
need it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class FlatBufferError(ValueError):
    """An offset, size or text that a FlatBuffer cannot have."""


@dataclass(frozen=True)
class Table:
    """One table: where it and its vtable lie in `data` (bytes, or a map of a file)."""

    data: Any
    at: int
    vtable: int
    n_vtable: int
    n_inline: int

    @classmethod
    def root(cls, data: Any) -> Table:
        return cls.read(data, _offset(data, 0))

    @classmethod
    def read(cls, data: Any, at: int) -> Table:
        vtable = at - _unpack(data, "<i", at)
        n_vtable, n_inline = _unpack(data, "<H", vtable), _unpack(data, "<H", vtable + 2)
        if n_vtable < 4 or n_vtable % 2 or vtable + n_vtable > len(data):
            raise FlatBufferError(f"a vtable of {n_vtable} bytes at {vtable}")
        if n_inline < 4 or at + n_inline > len(data):
            raise FlatBufferError(f"a table of {n_inline} bytes at {at}")
        return cls(data, at, vtable, n_vtable, n_inline)

    def _field(self, index: int, n_bytes: int) -> int | None:
        """Where a field's inline bytes lie; None if it has its default."""
        slot = 4 + 2 * index
        if slot >= self.n_vtable:
            return None
        offset = int(_unpack(self.data, "<H", self.vtable + slot))
        if not offset:
            return None
        if offset < 4 or offset + n_bytes > self.n_inline:
            raise FlatBufferError(f"a field outside its table at {self.at}")
        return self.at + offset

    def number(self, index: int, layout: str, default: int = 0) -> int:
        """A scalar field; `layout` is struct's letter for it."""
        at = self._field(index, struct.calcsize(layout))
        return default if at is None else int(_unpack(self.data, f"<{layout}", at))

    def table(self, index: int) -> Table | None:
        at = self._field(index, 4)
        return None if at is None else Table.read(self.data, _offset(self.data, at))

    def text(self, index: int) -> str:
        """A string field; `` if it is absent. Raises FlatBufferError unless it is UTF-8."""
        start, count = self._vector(index, 1)
        try:
            return bytes(self.data[start : start + count]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FlatBufferError(f"a text that is not UTF-8: {error}") from None

    def tables(self, index: int, limit: int) -> Iterator[Table]:
        start, count = self._vector(index, 4)
        if count > limit:
            raise FlatBufferError(f"{count} entries where {limit} are the most")
        for i in range(count):
            at = start + 4 * i
            yield Table.read(self.data, _offset(self.data, at))

    def numbers(self, index: int, layout: str, limit: int) -> tuple[int | float, ...]:
        start, count = self._vector(index, struct.calcsize(layout))
        if count > limit:
            raise FlatBufferError(f"{count} numbers where {limit} are the most")
        return struct.unpack_from(f"<{count}{layout}", self.data, start)

    def span(self, index: int, item_bytes: int) -> tuple[int, int]:
        """First byte and number of bytes of a vector; (0, 0) if it is absent."""
        start, count = self._vector(index, item_bytes)
        return start, count * item_bytes

    def _vector(self, index: int, item_bytes: int) -> tuple[int, int]:
        at = self._field(index, 4)
        if at is None:
            return 0, 0
        start = _offset(self.data, at)
        count = _unpack(self.data, "<I", start)
        if start + 4 + count * item_bytes > len(self.data):
            raise FlatBufferError(f"a list of {count} at {start} that leaves the file")
        return start + 4, count


def _unpack(data: Any, layout: str, at: int) -> Any:
    if not 0 <= at <= len(data) - struct.calcsize(layout):
        raise FlatBufferError(f"an offset to {at}; there are {len(data)} bytes")
    return struct.unpack_from(layout, data, at)[0]


def _offset(data: Any, at: int) -> int:
    distance = _unpack(data, "<I", at)
    if distance == 0:
        raise FlatBufferError(f"an offset to itself at {at}")
    return at + int(distance)
