"""Redraw a terminal's second screen in place, and restore the first one at every exit."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, TextIO

import click

from boardfit.edge.terminal.output import write_text
from boardfit.edge.watch.draw import Line

# DEC private modes 1049 (second screen) and 25 (cursor); xterm, ctlseqs.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_STYLES: dict[str, dict[str, Any]] = {"plain": {}, "bold": {"bold": True}, "dim": {"dim": True},
                                      "bad": {"fg": "red", "bold": True}}  # fmt: skip


class Screen:
    """Within the `with` block the terminal shows what `draw` was given and keys come one by one."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._modes: Any = None
        self._wake_read, self._wake_write = os.pipe()
        self._before: dict[int, Any] = {}
        self._colour = "NO_COLOR" not in os.environ  # https://no-color.org

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines now; 80 by 24 if the terminal does not report them."""
        try:
            columns, lines = os.get_terminal_size(self._out.fileno())
        except OSError:
            return 80, 24
        return columns or 80, lines or 24

    def draw(self, lines: Sequence[Line]) -> None:
        """Replace what is shown. Written at once, so that nothing flickers."""
        texts = [
            click.style(line.text, **_STYLES[line.tone]) if self._colour else line.text
            for line in lines
        ]
        self._write("\x1b[H" + "\x1b[K\r\n".join(texts) + "\x1b[K\x1b[J")

    def wait(self, seconds: float) -> str:
        """A key that was typed, or "" after `seconds` or when the window changed its size."""
        handles = [self._wake_read, *([self._keys] if self._keys >= 0 else [])]
        ready, _, _ = select.select(handles, [], [], max(0.0, seconds))
        if self._wake_read in ready:
            os.read(self._wake_read, 64)
        if self._keys in ready:
            typed = os.read(self._keys, 64).decode("utf-8", "replace")
            if not typed:  # the terminal was closed
                raise EOFError
            return typed[0]
        return ""

    def __enter__(self) -> Screen:
        self._enter()
        os.set_blocking(self._wake_write, False)
        handlers = {"SIGWINCH": self._on_resize, "SIGTSTP": self._on_suspend}
        handlers |= dict.fromkeys(("SIGTERM", "SIGHUP"), self._on_terminate)
        for name, handler in handlers.items():
            if number := getattr(signal, name, None):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._leave()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _enter(self) -> None:
        if self._keys >= 0:
            with contextlib.suppress(ImportError):  # Windows has no termios: Ctrl-C leaves
                import termios
                import tty

                self._modes = termios.tcgetattr(self._keys)
                tty.setcbreak(self._keys)
        self._write(_ENTER)

    def _leave(self) -> None:
        if self._modes is not None:
            import termios

            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._modes)
            self._modes = None
        with contextlib.suppress(OSError):  # the terminal may be closed
            self._write(_LEAVE)

    def _write(self, text: str) -> None:
        write_text(text, self._out)

    def _on_resize(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"w")

    def _on_suspend(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its own screen back, and we ours when we go on."""
        self._leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._on_suspend)
        self._enter()
        self._on_resize(number, frame)

    def _on_terminate(self, number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)
