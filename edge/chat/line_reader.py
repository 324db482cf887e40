"""Read messages from standard input: single lines, continued lines, blocks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from boardfit.edge.errors import InputError

_FENCE = '"""'
_PROMPT, _MORE = "> ", ". "


class LineReader:
    """Lines from standard input, with editing and history where it is a terminal."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        if self.interactive:
            with contextlib.suppress(ImportError):  # Windows has none
                import readline  # noqa: F401  (importing it gives `input` editing and history)

    def line(self, prompt: str) -> str:
        """One line without its newline. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C,
        InputError for bytes that are no text.
        """
        try:
            line = input(prompt) + "\n" if self.interactive else sys.stdin.readline()
        except UnicodeDecodeError:
            raise InputError("standard input is not valid text in its encoding") from None
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def message(self) -> str:
        """One message of one or more lines. An unfinished block at the end counts as finished."""
        line = self.line(_PROMPT)
        if line.strip() == _FENCE:
            return self._read_until(lambda text: text.strip() == _FENCE)
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            try:
                line = self.line(_MORE)
            except EOFError:
                return "\n".join(lines)
        return "\n".join([*lines, line])

    def _read_until(self, is_end: Callable[[str], bool]) -> str:
        lines: list[str] = []
        while True:
            try:
                line = self.line(_MORE)
            except EOFError:
                return "\n".join(lines)
            if is_end(line):
                return "\n".join(lines)
            lines.append(line)
