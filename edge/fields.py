"""Types and ranges of what a stranger's JSON may hold: plans, results, boards' reports and states.

A schema is data: `{"n_ctx": Whole(1, MAX_INT), "device": Word()}`. `check_fields` raises InputError
that names the entry, what was got and what was expected. Nothing is converted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from boardfit.edge.errors import InputError
from boardfit.edge.units import did_you_mean, printable

#: The largest count that C and JSON readers agree on, and more bytes than any board has.
MAX_INT, MAX_BYTES = (1 << 31) - 1, 1 << 50
#: Larger figures overflow when they are added or multiplied.
MAX_FIGURE = 1e300
MAX_TEXT, MAX_WORD = 10_000, 300


def is_finite(value: object) -> bool:
    """Whether a value is a number that arithmetic can take: no flag, NaN, infinity or huge int."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # A comparison takes an int of any size. `math.isfinite` raises OverflowError for it.
    return is_number and -MAX_FIGURE < value < MAX_FIGURE  # type: ignore[operator]


def refuse_constant(name: str) -> NoReturn:
    """For `parse_constant`: JSON has no NaN and no Infinity."""
    raise ValueError(f"{name} is not a figure")


def read_finite(text: str) -> float:
    """For `parse_float`: Python reads 1e999 as infinity, which no JSON can hold again."""
    value = float(text)
    if not is_finite(value):
        refuse_constant(f"{text:.40}")
    return value


class FieldKind(Protocol):
    """What one entry may hold."""

    @property
    def expected(self) -> str:
        """The kind in words, for a message."""

    def accepts(self, value: Any) -> bool:
        """Whether the value is of this kind."""


@dataclass(frozen=True)
class Whole:
    """A whole number in a range."""

    least: int = 0
    most: int = MAX_BYTES

    @property
    def expected(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most


@dataclass(frozen=True)
class Real:
    """A finite number in a range."""

    least: float = 0.0
    most: float = MAX_FIGURE

    @property
    def expected(self) -> str:
        return f"a finite number of at least {self.least:g}"

    def accepts(self, value: Any) -> bool:
        return is_finite(value) and self.least <= value <= self.most


@dataclass(frozen=True)
class Flag:
    """True or false."""

    expected: str = "true or false"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Text:
    """A text of limited length. It may hold control characters: print it with `printable`."""

    most: int = MAX_TEXT

    @property
    def expected(self) -> str:
        return f"a text of at most {self.most} characters"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and len(value) <= self.most


@dataclass(frozen=True)
class Word:
    """A short text without control characters, such as a name or an id."""

    most: int = MAX_WORD

    @property
    def expected(self) -> str:
        return f"a text of at most {self.most} characters without control characters"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and len(value) <= self.most and value.isprintable()


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.words)}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.words


@dataclass(frozen=True)
class ListOf:
    """A list with items of one kind."""

    item: FieldKind
    most: int = 10_000

    @property
    def expected(self) -> str:
        return f"a list of at most {self.most} items, each {self.item.expected}"

    def accepts(self, value: Any) -> bool:
        is_list = isinstance(value, (list, tuple)) and len(value) <= self.most
        return is_list and all(map(self.item.accepts, value))


@dataclass(frozen=True)
class TableOf:
    """An object whose values are of one kind."""

    item: FieldKind
    most: int = 1000

    @property
    def expected(self) -> str:
        return f"an object of at most {self.most} entries, each {self.item.expected}"

    def accepts(self, value: Any) -> bool:
        is_table = isinstance(value, Mapping) and len(value) <= self.most
        return is_table and all(
            isinstance(key, str) and key.isprintable() and self.item.accepts(entry)
            for key, entry in value.items()
        )


@dataclass(frozen=True)
class OrNull:
    """Null, or a value of another kind."""

    kind: FieldKind

    @property
    def expected(self) -> str:
        return f"null or {self.kind.expected}"

    def accepts(self, value: Any) -> bool:
        return value is None or self.kind.accepts(value)


@dataclass(frozen=True)
class AnyObject:
    """An object with any content."""

    expected: str = "an object"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping)


Schema = Mapping[str, FieldKind]


def check_fields(
    data: Any,
    schema: Schema,
    where: str,
    *,
    required: frozenset[str] = frozenset(),
    others: bool = False,
) -> None:
    """Raise InputError unless `data` is an object whose entries are as the schema has them.

    `required` entries must be there. `others` allows entries that the schema does not name.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected an object, got {shown(data)}")
    for key, value in data.items():
        kind = schema.get(key)
        if kind is None:
            if others:
                continue
            hint = did_you_mean(str(key)[:MAX_WORD], schema)
            raise InputError(f"{where}: unknown key {printable(str(key))!r}.{hint}")
        if not kind.accepts(value):
            raise InputError(f"{where}: {key} must be {kind.expected}, got {shown(value)}")
    if missing := sorted(required - set(data)):
        raise InputError(f"{where}: entry {missing[0]!r} is missing")


def keep_valid(data: Any, schema: Schema, *, others: bool = False) -> dict[str, Any]:
    """Only the entries that are as the schema has them, for what may be lost. `others` keeps
    entries that the schema does not name.
    """
    if not isinstance(data, Mapping):
        return {}
    return {
        key: value
        for key, value in data.items()
        if (schema[key].accepts(value) if key in schema else others)
    }


def shown(value: Any) -> str:
    """A value in a message: short, and without control characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 << 64:
        return f"a number of {value.bit_length()} bits"  # printing it takes quadratic time
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    try:
        return printable(repr(value), 60)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
