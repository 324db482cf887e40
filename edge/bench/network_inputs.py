"""Make synthetic inputs for an unknown network, always the same ones for a signature."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boardfit.edge.errors import UnsupportedModelError, UsageError
from boardfit.edge.units import did_you_mean, printable

MAX_ELEMENTS = 1 << 28
_MAX_INPUTS = 1024
_SEED = 20260101
_OTHER_RANK = " (another number of dimensions)"

# What an open dimension is taken to be, by its name; the first that matches decides.
_BY_NAME = (
    (r"past|cache", 0),
    (r"batch|^n$|^b$|unk__0$", 1),
    (r"channel|^c$", 3),
    (r"height|width|^h$|^w$|image|pixel", 224),
    (r"seq|length|len|time|frame|token|^t$|^s$|^l$", 128),
)
# Text models index tables with their inputs, recurrent ones count lengths: 1 is in every range.
_LENGTHS = re.compile(r"length|lens?$", re.IGNORECASE)
_MASKS = re.compile(r"mask", re.IGNORECASE)


@dataclass(frozen=True)
class InputSpec:
    """One input: `shape` holds a number per fixed dimension, a name or None per open one."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`name=1x3x224x224` options. Raises UsageError for anything else."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, separator, dims = text.rpartition("=")
        if not separator or not name or not re.fullmatch(r"\d{1,9}(x\d{1,9})*", dims):
            raise UsageError(
                f"--shape {printable(text)!r}: expected NAME=1x3x224x224",
                next_step="edge bench MODEL lists the names of the inputs",
            )
        found[name] = tuple(map(int, dims.split("x")))
    return found


def resolve_shapes(
    inputs: Sequence[InputSpec], given: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """A whole shape for every input: what was given, what the file fixes, and a rule for the rest.
    Raises UsageError for a wrong shape or name, UnsupportedModelError for inputs that are too
    large.
    """
    names = [spec.name for spec in inputs]
    if len(names) > _MAX_INPUTS:
        raise UnsupportedModelError(f"the network has {len(names)} inputs; {_MAX_INPUTS} at most")
    for name in given:
        if name not in names:
            raise UsageError(
                f"--shape: no input is called {printable(name)!r}; inputs: "
                f"{', '.join(map(printable, names[:20]))}.{did_you_mean(name, names)}"
            )
    found = {}
    for spec in inputs:
        rule = tuple(
            dim if isinstance(dim, int) and dim >= 0 else open_dimension(spec, axis)
            for axis, dim in enumerate(spec.shape)
        )
        shape = given.get(spec.name) or rule
        is_fixed = [isinstance(dim, int) and dim >= 0 for dim in spec.shape]
        pairs = zip(rule, shape, is_fixed, strict=False)
        if len(shape) != len(rule) or any(fixed and a != b for a, b, fixed in pairs):
            other = "" if any(isinstance(dim, int) for dim in spec.shape) else _OTHER_RANK
            raise UsageError(
                f"--shape: {printable(spec.name)} is {shape_text(spec.shape)} in the file, got "
                f"{shape_text(shape)}{other}"
            )
        if math.prod(shape) > MAX_ELEMENTS:
            raise UnsupportedModelError(
                f"input {printable(spec.name)} of shape {shape_text(shape)} has "
                f"{math.prod(shape)} values; {MAX_ELEMENTS} at most",
                next_step=f"--shape {printable(spec.name)}=… gives a smaller one",
            )
        found[spec.name] = shape
    return found


def open_dimension(spec: InputSpec, axis: int) -> int:
    """What an open dimension becomes: by its name, else by its place."""
    name = spec.shape[axis]
    if isinstance(name, str):
        for pattern, size in _BY_NAME:
            if re.search(pattern, name.lower()):
                return size
    if axis == 0:
        return 1
    if len(spec.shape) == 4:  # pictures: channels first or last
        channels = spec.shape[1] if isinstance(spec.shape[1], int) else spec.shape[3]
        first = isinstance(spec.shape[1], int) and channels == spec.shape[1]
        return 3 if not isinstance(channels, int) and axis == 1 and not first else 224
    return 128


def shape_text(shape: Sequence[int | str | None]) -> str:
    """`1x3x224x224`; open dimensions by name, or `?`."""
    return "x".join(printable(str(dim)) if dim is not None else "?" for dim in shape) or "scalar"


def make_values(inputs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """numpy arrays by input name: floats from 0 to 1, bytes of a picture for uint8, 0 and 1 for
    other integers (valid in every table of more than one row), ones for masks and lengths. Raises
    UnsupportedModelError for another element type.
    """
    import numpy as np

    random = np.random.default_rng(_SEED)
    values: dict[str, Any] = {}
    for spec in inputs:
        shape, kind = shapes[spec.name], spec.dtype
        if kind == "bool":
            values[spec.name] = np.ones(shape, np.bool_)
        elif kind in ("float32", "float16", "float64"):
            values[spec.name] = random.random(shape, np.float32).astype(kind)
        elif kind in ("uint8", "int8") and not _MASKS.search(spec.name):
            low = np.iinfo(kind).min
            values[spec.name] = random.integers(low, low + 256, shape, np.int16).astype(kind)
        elif kind in ("int32", "int64", "int16", "uint16", "uint32", "uint64", "int8", "uint8"):
            ones = _MASKS.search(spec.name) or _LENGTHS.search(spec.name)
            made = np.ones(shape) if ones else random.integers(0, 2, shape)
            values[spec.name] = made.astype(kind)
        else:
            raise UnsupportedModelError(
                f"input {printable(spec.name)} is of type {kind}; edge bench makes numbers only"
            )
    return values
