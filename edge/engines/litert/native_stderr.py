"""Capture a native library's stderr while it opens a model, for error messages.

TFLite reports an operator it does not know there and nowhere else, and greets there. There is no
switch in its Python or C interface.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

from boardfit.edge.terminal.output import echo

_LIBRARY_LINE = re.compile(r"^(INFO|WARNING|ERROR|VERBOSE): |^[IWEF]\d{4} ")
_lock = threading.Lock()


class Captured:
    """Lines that the library printed, once the block is left."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def errors(self) -> str:
        """The library's errors in one line, without their prefixes; `` where there were none."""
        found = [line[7:] for line in self.lines if line.startswith("ERROR: ")]
        return "; ".join(dict.fromkeys(found))


@contextlib.contextmanager
def captured_stderr() -> Iterator[Captured]:
    """Keep what native code writes to stderr inside the block. Lines that do not look like the
    library's (another thread may log meanwhile) are written to stderr afterwards.
    """
    captured = Captured()
    with _lock, tempfile.TemporaryFile() as file:
        try:
            sys.stderr.flush()
            saved = os.dup(2)
        except (OSError, ValueError, AttributeError):  # no stderr: nothing to keep apart
            yield captured
            return
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            for line in file.read().decode("utf-8", "replace").splitlines():
                if _LIBRARY_LINE.match(line):
                    captured.lines.append(line)
                else:
                    echo(line, err=True)
