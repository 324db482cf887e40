"""Types and ranges of what a stranger's JSON may hold: plans, results, boards' reports and states.

A schema is data: `{"n_ctx": Whole(1, MAX_INT), "device": Word()}`. Nothing is converted.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

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


class FieldKind:
    """What one entry may hold: in words for a message, and as a test of a value."""

    def __init__(self, expected: str, accepts: Callable[[Any], object]) -> None:
        self.expected, self.accepts = expected, accepts


class Whole(FieldKind):
    def __init__(self, least: int = 0, most: int = MAX_BYTES) -> None:
        expected = f"a whole number from {least} to {most}"
        super().__init__(expected, lambda value: type(value) is int and least <= value <= most)


class Real(FieldKind):
    def __init__(self, least: float = 0.0, most: float = MAX_FIGURE) -> None:
        expected = f"a finite number of at least {least:g}"
        super().__init__(expected, lambda value: is_finite(value) and least <= value <= most)


class Flag(FieldKind):
    def __init__(self) -> None:
        super().__init__("true or false", lambda value: isinstance(value, bool))


class Text(FieldKind):
    """A text of limited length. It may hold control characters: print it with `printable`."""

    def __init__(self, most: int = MAX_TEXT) -> None:
        expected = f"a text of at most {most} characters"
        super().__init__(expected, lambda value: isinstance(value, str) and len(value) <= most)


class Word(FieldKind):
    """A short text without control characters, such as a name or an id."""

    def __init__(self, most: int = MAX_WORD) -> None:
        text = Text(most)
        expected = f"{text.expected} without control characters"
        super().__init__(expected, lambda value: text.accepts(value) and value.isprintable())


class OneOf(FieldKind):
    def __init__(self, words: tuple[str, ...]) -> None:
        expected = f"one of {', '.join(words)}"
        super().__init__(expected, lambda value: isinstance(value, str) and value in words)


class ListOf(FieldKind):
    def __init__(self, item: FieldKind, most: int = 10_000) -> None:
        def accepts(value: Any) -> bool:
            is_list = isinstance(value, (list, tuple)) and len(value) <= most
            return is_list and all(map(item.accepts, value))

        super().__init__(f"a list of at most {most} items, each {item.expected}", accepts)


class TableOf(FieldKind):
    """An object whose values are of one kind."""

    def __init__(self, item: FieldKind, most: int = 1000) -> None:
        def accepts(value: Any) -> bool:
            is_table = isinstance(value, Mapping) and len(value) <= most
            return is_table and all(
                isinstance(key, str) and key.isprintable() and item.accepts(entry)
                for key, entry in value.items()
            )

        super().__init__(f"an object of at most {most} entries, each {item.expected}", accepts)


class OrNull(FieldKind):
    def __init__(self, kind: FieldKind) -> None:
        expected = f"null or {kind.expected}"
        super().__init__(expected, lambda value: value is None or kind.accepts(value))


class AnyObject(FieldKind):
    def __init__(self) -> None:
        super().__init__("an object", lambda value: isinstance(value, Mapping))


Schema = Mapping[str, FieldKind]


def check_fields(
    data: Any,
    schema: Schema,
    where: str,
    *,
    required: frozenset[str] = frozenset(),
    others: bool = False,
) -> None:
    """Raise InputError, which names the entry, unless `data` is an object as the schema has it.
    `required` entries must be there; `others` are allowed.
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
    """Only the entries that are as the schema has them; `others` keeps those that it lacks."""
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
