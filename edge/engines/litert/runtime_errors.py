"""Turn the errors of a TFLite runtime into helpful sentences."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources

from boardfit.edge.errors import EngineError, InputError, UnsupportedModelError
from boardfit.edge.requirements import install_line
from boardfit.edge.units import printable


@functools.cache
def _operator_names() -> list[str]:
    """TFLite's builtin operators, by number (`schema.fbs`, enum BuiltinOperator)."""
    file = resources.files("boardfit.edge.engines.litert").joinpath("operators.txt")
    return file.read_text("utf-8").split()


def operator_name(number: int) -> str:
    """Name of a builtin operator; its number in words where it is newer than the list."""
    names = _operator_names()
    return names[number] if 0 <= number < len(names) else f"number {number}"


def damaged(name: str, reason: str) -> InputError:
    """The runtime's own check of the file's structure failed."""
    return InputError(
        f"{name}: its TFLite model is damaged or edited: {printable(reason)[:200]}",
        next_step="copy or build it again",
    )


def load_error(
    name: str, runtime: str, reason: str, log: Sequence[str]
) -> UnsupportedModelError | EngineError:
    """What went wrong when `runtime` (name and version) refused a model, from its own words."""
    said = "; ".join(dict.fromkeys(log))
    words = printable(" ".join(f"{reason} {said}".split()))[:400]
    number = re.search(r"builtin_code out of range: (\d+)", words)
    named = re.search(r"op for builtin opcode '(\w+)'(?: version '(\d+)')?", words)
    custom = re.search(r"[Uu]nresolved custom op: ([\w:]+)|custom op(?:eration)? '?([\w:]+)", words)
    if number:
        operator = operator_name(int(number[1]))
    elif named:
        operator = named[1] + (f" version {named[2]}" if named[2] else "")
    elif custom:
        operator = f"custom operator {custom[1] or custom[2]}"
    else:
        return EngineError(f"{name}: {runtime} does not load it: {words or 'it says no reason'}")
    return UnsupportedModelError(
        f"{name}: {runtime} has no operator {operator}",
        next_step="edge build MODEL --format tflite --device BOARD writes a file for the runtime "
        f"of that board; or install a newer one: {install_line('tflite', 'ai-edge-litert')}",
    )
