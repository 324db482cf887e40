"""Progress output of host commands: stages as lines, progress as a bar with an ETA."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm


class TerminalReporter:
    """Stages on stderr, and a bar under the running one; quiet lines where there is no terminal.

    with TerminalReporter() as reporter:
        reporter.stage("quantizing")
        reporter.progress(1, 2)
    """

    def __init__(
        self, *, quiet: bool = False, unit: str = "", stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._unit = unit
        self._bar: tqdm | None = None
        self._stage, self._started = "", 0.0

    def stage(self, text: str) -> None:
        self._finish()
        self._stage, self._started = text, time.monotonic()

    def progress(self, done: int, total: int) -> None:
        if self._quiet:
            return
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                desc=f"  {self._stage}",
                unit=self._unit,
                unit_scale=True,
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
                # In a log a bar is noise: tqdm draws only on a terminal then.
                disable=None,
                delay=0.5,
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._stage and not self._quiet:
            seconds = time.monotonic() - self._started
            took = f"  {seconds:.1f} s" if seconds >= 0.1 else ""
            print(f"  {self._stage}{took}", file=self._stream, flush=True)
        self._stage = ""

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish()
        elif self._bar is not None:
            self._bar.close()
