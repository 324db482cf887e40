"""Read the fields of a request's JSON: null stands for absent, and every wrong one is named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.serve.refused import RequestRefused, bad_field


def parse_json(data: bytes) -> RequestFields:
    """The object in a request's body. Raises RequestRefused for anything else."""
    try:
        value = json.loads(data or b"{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "not JSON"
        raise RequestRefused(400, f"the body is {reason}") from None
    if not isinstance(value, dict):
        raise bad_field("the body", "an object", value)
    return RequestFields(value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class RequestFields:
    """The fields of one object. Each reader returns its default for a field that is absent."""

    def __init__(self, fields: Mapping[str, Any], path: str = "") -> None:
        self._fields, self._path = fields, path

    @property
    def fields(self) -> Mapping[str, Any]:
        """All of them, unread."""
        return self._fields

    def name(self, key: str) -> str:
        """The field's name from the top of the body, for a message."""
        return f"{self._path}{key}"

    def get(self, key: str) -> Any:
        return self._fields.get(key)

    def __bool__(self) -> bool:
        return bool(self._fields)

    def text(self, key: str, default: str = "", *, most: int = 1 << 20) -> str:
        value = self.get(key)
        if value is None:
            return default
        return self._check_text(self.name(key), value, most)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise bad_field(self.name(key), "true or false", value)
        return value

    def whole(self, key: str, low: int, high: int, default: int) -> int:
        """A whole number within bounds, both included. 3.0 is one; true is none."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise bad_field(self.name(key), "a whole number", value)
        if not low <= value <= high:
            raise RequestRefused(
                400, f"{self.name(key)}: expected {low} to {high}", param=self.name(key)
            )
        return value

    def number(self, key: str, low: float, high: float, default: float) -> float:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise bad_field(self.name(key), "a number", value)
        if not (low <= value <= high and math.isfinite(value)):
            raise RequestRefused(
                400, f"{self.name(key)}: expected {low:g} to {high:g}", param=self.name(key)
            )
        return float(value)

    def choice(self, key: str, words: Sequence[str], default: str) -> str:
        value = self.get(key)
        if value is None:
            return default
        if value not in words:
            expected = f"one of {', '.join(words)}"
            raise RequestRefused(
                400, f"{self.name(key)}: expected {expected}", param=self.name(key)
            )
        return str(value)

    def items(self, key: str, *, most: int) -> list[Any]:
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise bad_field(self.name(key), "an array", value)
        if len(value) > most:
            raise RequestRefused(
                400, f"{self.name(key)}: {len(value)} entries; the limit is {most}",
                param=self.name(key),
            )  # fmt: skip
        return value

    def table(self, key: str) -> RequestFields:
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise bad_field(self.name(key), "an object", value)
        return RequestFields(value or {}, f"{self.name(key)}.")

    def tables(self, key: str, *, most: int) -> list[RequestFields]:
        """The objects of an array."""
        found = []
        for i, value in enumerate(self.items(key, most=most)):
            if not isinstance(value, dict):
                raise bad_field(f"{self.name(key)}[{i}]", "an object", value)
            found.append(RequestFields(value, f"{self.name(key)}[{i}]."))
        return found

    def texts(self, key: str, *, most: int, longest: int) -> tuple[str, ...]:
        """A text or an array of texts. Empty ones are left out."""
        value = self.get(key)
        values = [value] if isinstance(value, str) else self.items(key, most=most)
        return tuple(
            text
            for i, each in enumerate(values)
            if (text := self._check_text(f"{self.name(key)}[{i}]", each, longest))
        )

    def scalars(self, key: str) -> dict[str, Any]:
        """An object of names with plain values."""
        table = self.table(key)
        for name, value in table._fields.items():
            if isinstance(value, (dict, list)):
                raise bad_field(table.name(name), "a text, a number, true or false", value)
        return {name: value for name, value in table._fields.items() if value is not None}

    def _check_text(self, name: str, value: Any, most: int) -> str:
        if not isinstance(value, str):
            raise bad_field(name, "a text", value)
        if len(value) > most:
            raise RequestRefused(
                400, f"{name}: {len(value)} characters; the limit is {most}", param=name
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RequestRefused(400, f"{name}: half of a surrogate pair", param=name) from None
        return value
