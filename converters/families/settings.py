"""Reading `config.json` with clear errors, and making metadata entries of the right GGUF types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from gguf import GGUFValueType

from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.fields import is_finite
from boardfit.edge.units import printable

D = TypeVar("D")
# No dimension of a model that runs on a board comes near; anything larger is a damaged file.
_LARGEST_INT = 2**31 - 1


class Config(dict[str, Any]):
    """A parsed `config.json`, or an object in it. The readers raise InputError for a value of
    another kind. Those that end in `_or` return their default where the key is absent or null.
    """

    def whole(self, key: str, *, least: int = 1, most: int = _LARGEST_INT) -> int:
        """A whole number. Raises InputError when it is absent or out of range."""
        expected = f"a whole number from {least} to {most}"
        value = self._present(key, expected)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _wrong(key, value, expected)
        return value

    def whole_or(self, key: str, default: D) -> int | D:
        return default if self.get(key) is None else self.whole(key)

    def number(self, key: str) -> float:
        """A finite number. Raises InputError otherwise."""
        value = self._present(key, "a number")
        if not is_finite(value):
            raise _wrong(key, value, "a finite number")
        return float(value)

    def number_or(self, key: str, default: D) -> float | D:
        return default if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean, `default` when it is absent or null."""
        value = self._of_kind(key, bool, "true or false")
        return default if value is None else bool(value)

    def entries(self, key: str, length: int | None = None) -> list[Any] | None:
        """A list (of exactly `length` entries), or None when it is absent or null."""
        expected = "a list" if length is None else f"a list of {length} entries"
        value: list[Any] | None = self._of_kind(key, list, expected)
        if value is not None and length is not None and len(value) != length:
            raise _wrong(key, value, expected)
        return value

    def inner(self, key: str) -> Config:
        """An object, an empty one when it is absent or null."""
        return Config(self._of_kind(key, dict, "an object") or {})

    def layer_kinds(
        self, known: Sequence[str], *, key: str = "layer_types", length: int | None = None
    ) -> list[str] | None:
        """The kind of each layer, or None when the key is absent. Raises UnsupportedModelError for
        a kind that is not among the `known`, InputError for a list of another length.
        """
        kinds = self.entries(key, length)
        for kind in kinds or ():
            if kind not in known:
                raise UnsupportedModelError(
                    f"config.json: {key} has {quote(kind)}; known here: {', '.join(known)}"
                )
        return kinds

    def _of_kind(self, key: str, kind: type, expected: str) -> Any:
        value = self.get(key)
        if value is not None and not isinstance(value, kind):
            raise _wrong(key, value, expected)
        return value

    def _present(self, key: str, expected: str) -> Any:
        value = self.get(key)
        if value is None:
            raise InputError(
                f"config.json: {key} is missing; expected {expected}",
                next_step="download config.json again from the model's page",
            )
        return value


def quote(value: object) -> str:
    """A value of a foreign file as a message may show it: quoted, printable, cut."""
    return printable(repr(value), 60)


def _wrong(key: str, value: object, expected: str) -> InputError:
    return InputError(
        f"config.json: {key} is {quote(value)}; expected {expected}",
        next_step="correct it in config.json, or download the file again",
    )


# -- metadata entries ----------------------------------------------------------------------------


def metadata_entries(arch: str, values: Mapping[str, Any]) -> list[KeyValue]:
    """`<arch>.*` entries in the types of their values. Whole numbers are unsigned, in lists signed.

    Raises InputError for a number that does not fit 32 bits.
    """
    return [_entry(f"{arch}.{name}", value) for name, value in values.items()]


def _entry(key: str, value: Any) -> KeyValue:
    if isinstance(value, list):
        kind = _kind(value[0])
        item = GGUFValueType.INT32 if kind is GGUFValueType.UINT32 else kind
        return KeyValue(key, value, GGUFValueType.ARRAY, item)
    kind = _kind(value)
    if kind is GGUFValueType.UINT32 and not 0 <= value < 2**32:
        raise InputError(f"{key} is {value}; it does not fit an unsigned 32-bit number")
    return KeyValue(key, value, kind)


def _kind(value: Any) -> GGUFValueType:
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, int):
        return GGUFValueType.UINT32
    return GGUFValueType.FLOAT32 if isinstance(value, float) else GGUFValueType.STRING
