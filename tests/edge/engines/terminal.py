"""A real terminal (pty) around a command, for tests that type into it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

_ROOT = Path(__file__).parents[3]
# What readline writes to steer the terminal; of no interest to a test.
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Starts `edge ARGUMENTS` on a pty of its own. `expect` waits for text and returns what came
    up to its end; nothing is ever returned twice.
    """

    def __init__(self, *arguments: str, timeout_s: float = 30) -> None:
        self._timeout_s = timeout_s
        self._unread = ""
        self.raw = b""
        controller, terminal = pty.openpty()
        self._fd = controller
        self._process = subprocess.Popen(
            [sys.executable, "-m", "boardfit", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=_ROOT,
            env={**os.environ, "TERM": "dumb", "PYTHONIOENCODING": "utf-8"},
            preexec_fn=_own_terminal,
        )
        os.close(terminal)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, through the terminal's line discipline as a user's would come."""
        self.type("\x03")

    def interrupt_prompt(self) -> None:
        """Ctrl-C at a prompt that has been there for a moment. CPython's readline shows its prompt
        before it waits for input, and misses a signal in between (no person is that fast).
        """
        self.expect("> ")
        self.quiet_for(0.5)
        self.interrupt()

    def expect(self, text: str) -> str:
        deadline = time.monotonic() + self._timeout_s
        while text not in self._unread:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{text!r} did not come; the terminal shows {self._unread!r}")
        seen, _, self._unread = self._unread.partition(text)
        return seen + text

    def quiet_for(self, seconds: float) -> str:
        """What comes until nothing has come for `seconds`."""
        while self._read(seconds):
            pass
        seen, self._unread = self._unread, ""
        return seen

    def exit_code(self) -> int:
        deadline = time.monotonic() + self._timeout_s
        while self._read(max(0.0, deadline - time.monotonic())):
            pass
        return self._process.wait(self._timeout_s)

    def _read(self, patience_s: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(0.0, patience_s))
        if not ready:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux says EIO when the other end is closed
            return False
        self.raw += data
        self._unread += _STEERING.sub("", data.decode("utf-8", "replace"))
        return bool(data)


def _own_terminal() -> None:
    """In the child: a session of its own whose controlling terminal is the pty, so that Ctrl-C
    becomes SIGINT for it and not for the tests.
    """
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
