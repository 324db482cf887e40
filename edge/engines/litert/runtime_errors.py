"""Turn the errors of a TFLite runtime into helpful sentences.

TFLite reports an operator it does not know on stderr and nowhere else, and greets there.
"""

import contextlib
import functools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib import resources

from boardfit.edge.errors import EngineError, InputError, UnsupportedModelError
from boardfit.edge.requirements import install_line
from boardfit.edge.terminal.output import echo
from boardfit.edge.units import printable

_LIBRARY_LINE = re.compile(r"^(INFO|WARNING|ERROR|VERBOSE): |^[IWEF]\d{4} ")
_lock = threading.Lock()


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


@contextlib.contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Keep what native code writes to stderr inside the block. Its errors, without their prefixes,
    are in the list once the block is left. Lines that do not look like the library's (another
    thread may log meanwhile) are written to stderr then.
    """
    errors: list[str] = []
    with _lock, tempfile.TemporaryFile() as file:
        try:
            sys.stderr.flush()
            saved = os.dup(2)
        except (OSError, ValueError, AttributeError):  # no stderr: nothing to keep apart
            yield errors
            return
        os.dup2(file.fileno(), 2)
        try:
            yield errors
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            for line in file.read().decode("utf-8", "replace").splitlines():
                if line.startswith("ERROR: "):
                    errors.append(line[7:])
                elif not _LIBRARY_LINE.match(line):
                    echo(line, err=True)
