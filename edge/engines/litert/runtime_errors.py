"""Turn the errors of a TFLite runtime into helpful sentences."""

from __future__ import annotations

import re

from boardfit.edge.engines.litert.tflite_operators import operator_name
from boardfit.edge.errors import EngineError, InputError, UnsupportedModelError
from boardfit.edge.requirements import install_line
from boardfit.edge.units import printable


def damaged(name: str, reason: str) -> InputError:
    """The runtime's own check of the file's structure failed."""
    return InputError(
        f"{name}: its TFLite model is damaged or edited: {printable(reason)[:200]}",
        next_step="copy or build it again",
    )


def load_error(
    name: str, runtime: str, reason: str, log: str
) -> UnsupportedModelError | EngineError:
    """What went wrong when `runtime` (name and version) refused a model, from its own words."""
    words = printable(" ".join(f"{reason} {log}".split()))[:400]
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
