"""Read protobuf messages in place, with every length checked against what is left of its parent.

Data is skipped, never copied. A message states no type: a reader takes the fields that it knows.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace

from boardfit.edge.errors import InputError, UnsafeInputError

MAX_NAME_BYTES = 64 * 1024


@dataclass(frozen=True)
class ProtoMessage:
    """Bytes `start` to `stop` of a file: a message, a text or a list of numbers. Errors call the
    file `name`, and `fault` is what is wrong with one that breaks a rule.
    """

    data: mmap.mmap | bytes
    start: int
    stop: int
    name: str
    fault: str

    @property
    def size(self) -> int:
        return self.stop - self.start

    def fields(self) -> Iterator[tuple[int, int | ProtoMessage]]:
        """Field numbers and values: an int, or a part for everything that has a length. Raises
        InputError for what is cut short, UnsafeInputError for numbers of more than 64 bits.
        """
        at = self.start
        while at < self.stop:
            key, at = self._varint(at)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, at = self._varint(at)
                yield number, value
                continue
            if wire == 2:
                length, at = self._varint(at)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise InputError(f"{self.name}: {self.fault} (wire type {wire} at byte {at})")
            if length > self.stop - at:
                raise InputError(
                    f"{self.name}: a field of {length} bytes at byte {at}, where {self.stop - at} "
                    f"are left: {self.fault}",
                    next_step="copy or download it again",
                )
            yield number, replace(self, start=at, stop=at + length)
            at += length

    def parts(self, *wanted: int) -> Iterator[ProtoMessage]:
        for number, value in self.fields():
            if number in wanted and isinstance(value, ProtoMessage):
                yield value

    def number(self, wanted: int) -> int | None:
        """The last number of a field, signed; None without one."""
        found = None
        for number, value in self.fields():
            if number == wanted and isinstance(value, int):
                found = to_signed(value)
        return found

    def numbers(self, wanted: int) -> Iterator[int]:
        """The numbers of a repeated field, signed, packed or not."""
        for number, value in self.fields():
            if number != wanted:
                continue
            if isinstance(value, int):
                yield to_signed(value)
                continue
            at = value.start
            while at < value.stop:
                one, at = value._varint(at)
                yield to_signed(one)

    def text(self, wanted: int) -> str:
        """The last text of a field; "" without one. Raises UnsafeInputError for a long one."""
        found = ""
        for part in self.parts(wanted):
            if part.size > MAX_NAME_BYTES:
                raise UnsafeInputError(f"{self.name}: a name of {part.size} bytes")
            found = part.read().decode("utf-8", "replace")
        return found

    def read(self) -> bytes:
        return bytes(self.data[self.start : self.stop])

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            if at >= self.stop:
                raise InputError(f"{self.name}: {self.fault} at byte {at}")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
            if shift > 63:
                raise UnsafeInputError(f"{self.name}: a number of more than 64 bits at byte {at}")


def to_signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
