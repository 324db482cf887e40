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
