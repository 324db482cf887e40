"""Report progress: the types that every function shares, and what a terminal shows of them."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

from boardfit.edge.terminal.output import terminal_safe
from boardfit.edge.units import format_bytes, format_seconds

#: Receives how much is done, and how much there is to do.
Progress = Callable[[int, int], None]
#: Receives the same, and the name of the part that is under way.
PartProgress = Callable[[int, int, str], None]
#: Receives how many bytes were done since the last call.
Advance = Callable[[int], None]
#: Receives one line for a person.
Say = Callable[[str], None]

_FIRST_S, _EVERY_S, _WINDOW_S = 0.5, 0.1, 10.0


class Reporter:
    """Receives what a long task does; this one reports nothing."""

    def stage(self, text: str) -> None:
        """A new step begins."""

    def progress(self, done: int, total: int) -> None:
        """How far the step is; `done` grows to `total`."""

    def say(self, text: str) -> None:
        """Something worth knowing about the step."""


class ProgressLine:
    """Show how far something slow is, on one line of a terminal's stderr, after half a second or
    with the first part that has a name. `close` wipes it.
    """

    def __init__(self, label: str, *, in_bytes: bool = False, quiet: bool = False) -> None:
        self._label, self._part = label, ""
        self._bytes = _ByteRate() if in_bytes else None
        self._is_live = sys.stderr.isatty() and not quiet
        self._is_shown = False
        self._start_s = time.monotonic()
        self._next_s = self._start_s + _FIRST_S

    def __call__(self, done: int, total: int, part: str = "") -> None:
        now_s = time.monotonic()
        if self._bytes is not None:
            self._bytes.add(done, now_s)
        if not self._is_live or (now_s < self._next_s and part == self._part):
            return
        self._is_shown, self._part, self._next_s = True, part, now_s + _EVERY_S
        text = self._text(done, total, now_s - self._start_s)
        print(f"\r\x1b[K{terminal_safe(text)}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_shown = False

    def _text(self, done: int, total: int, elapsed_s: float) -> str:
        left = format_seconds(elapsed_s / done * (total - done)) if done else "–"
        if self._part:
            return f"{self._label} {done}/{total}  {self._part}  {left} to go"
        percent = f"{self._label} {100 * done // total if total else 100:3d} %"
        return f"{percent}  {self._bytes.text(done, total) if self._bytes else f'{left} to go'}"


class TerminalReporter(Reporter):
    """`Reporter` on stderr: a line for each stage, printed when it ends, with its seconds, or
    (without `is_timed`) when it begins; and a moving line on a terminal.
    """

    def __init__(
        self, *, quiet: bool = False, is_timed: bool = True, in_bytes: bool = False
    ) -> None:
        self._quiet, self._is_timed, self._in_bytes = quiet, is_timed, in_bytes
        self._stage, self._start_s = "", 0.0
        self._line = ProgressLine("   ", in_bytes=in_bytes, quiet=quiet)

    def stage(self, text: str) -> None:
        self.close()
        self._stage, self._start_s = text, time.monotonic()
        label = f"  {text}" if self._is_timed else "   "
        self._line = ProgressLine(label, in_bytes=self._in_bytes, quiet=self._quiet)
        if not self._is_timed:
            self._print(f"  {text}")

    def progress(self, done: int, total: int) -> None:
        self._line(done, total)

    def say(self, text: str) -> None:
        self._line.close()
        self._print(f"    {text}")

    def close(self) -> None:
        self._line.close()
        if self._stage and self._is_timed:
            seconds = time.monotonic() - self._start_s
            self._print(f"  {self._stage}" + (f"  {seconds:.1f} s" if seconds >= 0.1 else ""))
        self._stage = ""

    def _print(self, text: str) -> None:
        if not self._quiet:
            print(terminal_safe(text), file=sys.stderr, flush=True)

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._stage = ""  # a stage that failed is not printed as done
        self.close()


class _ByteRate:
    """Bytes over the last seconds as a rate, and the time that the rest takes at that rate."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int, now_s: float) -> None:
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # a file is sent once more
        self._seen.append((now_s, done))
        while now_s - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()

    def text(self, done: int, total: int) -> str:
        line = f"{format_bytes(done)} of {format_bytes(total)}"
        (start_s, start), (end_s, end) = self._seen[0], self._seen[-1]
        if end_s <= start_s or end <= start:
            return line
        rate = (end - start) / (end_s - start_s)
        return f"{line}  {format_bytes(int(rate))}/s  {format_seconds((total - done) / rate)} left"
