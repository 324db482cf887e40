"""Read messages from standard input: single lines, continued lines, blocks."""

import contextlib
import io
import sys
from typing import TextIO

from boardfit.edge.errors import InputError
from boardfit.edge.files.text import clean_text, find_encoding

_FENCE = '"""'
_PROMPT, _MORE = "> ", ". "


class LineReader:
    """Lines from standard input, with editing and history where it is a terminal."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        if self.interactive:
            with contextlib.suppress(ImportError):  # Windows has none
                import readline  # noqa: F401  (importing it gives `input` editing and history)
        self._piped: TextIO | None = None  # opened at the first line: that waits for its encoding

    def line(self, prompt: str) -> str:
        """One line without its newline. Raises EOFError, KeyboardInterrupt, or InputError."""
        try:
            line = input(prompt) + "\n" if self.interactive else self._open_pipe().readline()
        except UnicodeError:
            raise InputError(
                "standard input is not valid text in its encoding",
                next_step="save it as UTF-8; UTF-16 needs its byte order mark",
            ) from None
        if not line:
            raise EOFError
        return clean_text(line, "standard input").removesuffix("\n")

    def _open_pipe(self) -> TextIO:
        """Standard input as text, read as `edge.files.text` reads a file."""
        if self._piped is None:
            self._piped = sys.stdin
            if (buffer := getattr(sys.stdin, "buffer", None)) is not None:
                head = buffer if hasattr(buffer, "peek") else io.BufferedReader(buffer)
                self._piped = io.TextIOWrapper(head, encoding=find_encoding(head.peek(4)))
        return self._piped

    def message(self) -> str:
        """One message of one or more lines. An unfinished block at the end counts as finished."""
        line, lines = self.line(_PROMPT), []
        with contextlib.suppress(EOFError):
            if line.strip() == _FENCE:
                while (line := self.line(_MORE)).strip() != _FENCE:
                    lines.append(line)
            else:
                while line.endswith("\\"):
                    lines.append(line[:-1])
                    line = self.line(_MORE)
                lines.append(line)
        return "\n".join(lines)
