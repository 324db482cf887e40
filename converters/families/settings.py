"""Reading `config.json` with clear errors, and making metadata entries of the right GGUF types."""

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
    value = _optional(config, key, bool, "true or false")
    return default if value is None else bool(value)


def optional_list(config: Config, key: str, length: int | None = None) -> list[Any] | None:
    """A list from `config.json` (of exactly `length` entries), or None when absent or null."""
    expected = "a list" if length is None else f"a list of {length} entries"
    value: list[Any] | None = _optional(config, key, list, expected)
    if value is not None and length is not None and len(value) != length:
        raise _wrong(key, value, expected)
    return value


def layer_kinds(
    config: Config, known: Sequence[str], *, key: str = "layer_types", length: int | None = None
) -> list[str] | None:
    """The kind of each layer, or None when the key is absent. Raises UnsupportedModelError for a
    kind that is not among the `known`, InputError for a list of another length.
    """
    kinds = optional_list(config, key, length)
    for kind in kinds or ():
        if kind not in known:
            raise UnsupportedModelError(
                f"config.json: {key} has {quote(kind)}; known here: {', '.join(known)}"
            )
    return kinds


def optional_mapping(config: Config, key: str) -> Mapping[str, Any] | None:
    """An object from `config.json`, or None when absent or null. Raises InputError otherwise."""
    value: dict[str, Any] | None = _optional(config, key, dict, "an object")
    return value


def _optional(config: Config, key: str, kind: type, expected: str) -> Any:
    value = config.get(key)
    if value is not None and not isinstance(value, kind):
        raise _wrong(key, value, expected)
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


def entries(arch: str, values: Mapping[str, Any]) -> list[KeyValue]:
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
