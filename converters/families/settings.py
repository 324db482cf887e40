"""Reading `config.json` with clear errors, and making metadata entries of the right GGUF types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf import GGUFValueType

from boardfit.converters.spec import KeyValue
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.fields import is_finite
from boardfit.edge.units import printable

Config = Mapping[str, Any]

# No dimension of a model that runs on a board comes near; anything larger is a damaged file.
_LARGEST_INT = 2**31 - 1


def require_int(config: Config, key: str, *, least: int = 1, most: int = _LARGEST_INT) -> int:
    """A whole number from `config.json`. Raises InputError when absent or out of range."""
    expected = f"a whole number from {least} to {most}"
    value = _present(config, key, expected)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(key, value, expected)
    return value


def optional_int(config: Config, key: str, default: int | None = None) -> int | None:
    """As `require_int`, with `default` when the key is absent or null."""
    return default if config.get(key) is None else require_int(config, key)


def require_float(config: Config, key: str) -> float:
    """A finite number from `config.json`. Raises InputError otherwise."""
    value = _present(config, key, "a number")
    if not is_finite(value):
        raise _wrong(key, value, "a finite number")
    return float(value)


def optional_float(config: Config, key: str, default: float | None = None) -> float | None:
    """As `require_float`, with `default` when the key is absent or null."""
    return default if config.get(key) is None else require_float(config, key)


def optional_bool(config: Config, key: str, default: bool) -> bool:
    """A boolean from `config.json`, `default` when absent or null. Raises InputError otherwise."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def optional_list(config: Config, key: str, length: int | None = None) -> list[Any] | None:
    """A list from `config.json` (of exactly `length` entries), or None when absent or null."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or (length is not None and len(value) != length):
        expected = "a list" if length is None else f"a list of {length} entries"
        raise _wrong(key, value, expected)
    return value


def optional_mapping(config: Config, key: str) -> Mapping[str, Any] | None:
    """An object from `config.json`, or None when absent or null. Raises InputError otherwise."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong(key, value, "an object")
    return value


def require_value(config: Config, key: str, value: Any) -> None:
    """Raise UnsupportedModelError when a key, if given, is not the value that the engine computes
    with.
    """
    given = config.get(key)
    if given is not None and given != value:
        raise UnsupportedModelError(
            f"config.json: {key} is {quote(given)}; the engine computes as if it were {value!r}"
        )


def with_defaults(config: Config, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`config` over the defaults of the family's configuration class; null counts as given."""
    return {**defaults, **config}


def _present(config: Config, key: str, expected: str) -> Any:
    value = config.get(key)
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


def uint32(key: str, value: int) -> KeyValue:
    """An unsigned 32-bit entry. Raises InputError out of range."""
    if not 0 <= value < 2**32:
        raise InputError(f"{key} is {value}; it does not fit an unsigned 32-bit number")
    return KeyValue(key, value, GGUFValueType.UINT32)


def float32(key: str, value: float) -> KeyValue:
    return KeyValue(key, float(value), GGUFValueType.FLOAT32)


def boolean(key: str, value: bool) -> KeyValue:
    return KeyValue(key, value, GGUFValueType.BOOL)


def string(key: str, value: str) -> KeyValue:
    return KeyValue(key, value, GGUFValueType.STRING)


def array(key: str, values: Sequence[Any], item_type: GGUFValueType) -> KeyValue:
    return KeyValue(key, list(values), GGUFValueType.ARRAY, item_type)


def replace_entry(entries: Sequence[KeyValue], new: KeyValue) -> list[KeyValue]:
    """The entries, with a new one in the place of that of its key."""
    return [new if entry.key == new.key else entry for entry in entries]
