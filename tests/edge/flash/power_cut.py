"""Make one numbered write, rename or fsync of a flash the last thing that happens. A fault is

    17          SIGKILL to this process at the 17th point
    17:ENOSPC   the 17th point raises OSError with that errno
    count:FILE  nothing happens; the number of points passed is kept in FILE

As a program it runs `edge` with a fault:

    python tests/edge/flash/power_cut.py FAULT flash BUNDLE TARGET
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import boardfit.edge.slots.faults as faults
from boardfit.edge.supervisor import main


class PowerCut(faults.FaultHook):
    def __init__(self, fault: str) -> None:
        kind, _, value = fault.partition(":")
        self._counter = Path(value) if kind == "count" else None
        self._at = 0 if self._counter else int(kind)
        self._error = 0 if self._counter or not value else getattr(errno, value)
        self._n_passed = 0

    def pass_point(self) -> None:
        if not self._pass(1):
            return
        if self._error:
            raise OSError(self._error, os.strerror(self._error))
        die()

    def cut_steps(self, steps: tuple[str, ...]) -> tuple[str, ...]:
        n_before = self._at - self._n_passed - 1
        return (*steps[:n_before], "kill -9 $$") if self._pass(len(steps)) else steps

    def finish_steps(self) -> None:
        if self._at and self._n_passed >= self._at:
            die()

    def _pass(self, n_points: int) -> bool:
        """Pass so many points; whether the cut is at one of them."""
        before, self._n_passed = self._n_passed, self._n_passed + n_points
        if self._counter:
            self._counter.write_text(str(self._n_passed))
        return before < self._at <= self._n_passed


def die() -> None:
    """As a power cut does it: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    faults.hook = PowerCut(sys.argv.pop(1))
    main()
