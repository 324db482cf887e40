"""Progress output of a flash: stages, and bytes with rate and time left on a terminal."""

from __future__ import annotations

import sys
import time
from collections import deque

import click

from boardfit.edge.units import format_bytes, format_seconds

_EVERY_S, _WINDOW_S = 0.2, 10.0


class TerminalReporter:
    """`Reporter` on stderr; the moving line only on a terminal. `quiet` prints nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._line = RateLine()
        self._next_s = 0.0
        self._shown = False

    def stage(self, text: str) -> None:
        self._wipe()
        self._line = RateLine()
        if not self._quiet:
            click.echo(f"  {text}", err=True)

    def progress(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        self._line.add(done, now_s)
        if not self._live or now_s < self._next_s:
            return
        self._next_s = now_s + _EVERY_S
        self._shown = True
        print(f"\r\x1b[K    {self._line.text(done, total)}", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        self._wipe()
        if not self._quiet:
            click.echo(f"    {text}", err=True)

    def close(self) -> None:
        self._wipe()

    def _wipe(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False


class RateLine:
    """Bytes over the last seconds as a rate, and the time that the rest takes at that rate."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, done: int, now_s: float) -> None:
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # a file is sent once more
        self._seen.append((now_s, done))
        while now_s - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()

    def rate(self) -> float | None:
        """Bytes per second; None before there is a rate."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return None
        (start_s, start), (end_s, end) = self._seen[0], self._seen[-1]
        return (end - start) / (end_s - start_s)

    def text(self, done: int, total: int) -> str:
        percent = 100 * done // total if total else 100
        line = f"{percent:3d} %  {format_bytes(done)} of {format_bytes(total)}"
        rate = self.rate()
        if rate:
            line += f"  {format_bytes(int(rate))}/s  {format_seconds((total - done) / rate)} left"
        return line
