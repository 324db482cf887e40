"""Ctrl-C that stops an answer instead of the program, even while native code runs.

Python runs a signal handler only between its own instructions. The wakeup descriptor is written by
the C-level handler at once, so that a thread that asks sees the signal within its polling time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any


class Interrupt:
    """Within the `with` block SIGINT only sets this flag; pass the object itself as `stop`. Outside
    the main thread it never triggers.
    """

    def __init__(self) -> None:
        self._stopped = False
        self._previous: Any = None
        self._previous_fd = -1
        self._read_fd = self._write_fd = -1

    def __call__(self) -> bool:
        if not self._stopped and self._read_fd >= 0:
            with contextlib.suppress(BlockingIOError):  # no signal has come
                # One byte per signal, its number; others (a resized window) come through here too.
                self._stopped = signal.SIGINT in os.read(self._read_fd, 64)
        return self._stopped

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._previous = signal.getsignal(signal.SIGINT)
        if self._previous in (signal.SIG_IGN, None):  # started in the background, or not Python's
            return self
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        signal.signal(signal.SIGINT, self._on_signal)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._read_fd < 0:
            return
        signal.set_wakeup_fd(self._previous_fd)
        signal.signal(signal.SIGINT, self._previous)
        os.close(self._write_fd)
        os.close(self._read_fd)
        self._read_fd = -1

    def _on_signal(self, *_: object) -> None:
        self._stopped = True
