"""Numbered points where a power cut can hit: every write, rename and fsync.

Set BOARDFIT_TEST_FAULT in a test to make one of them the last thing that happens:

    17          SIGKILL to this process at the 17th point
    17:ENOSPC   the 17th point raises OSError with that errno
    count:FILE  nothing happens; the number of points passed is kept in FILE
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from pathlib import Path

_VARIABLE = "BOARDFIT_TEST_FAULT"
_counter = itertools.count(1)


def fault_point() -> None:
    """Pass one point. Does nothing unless a test has set the variable."""
    wanted = os.environ.get(_VARIABLE)
    if wanted is None:
        return
    number = next(_counter)
    if wanted.startswith("count:"):
        Path(wanted.removeprefix("count:")).write_text(str(number))
        return
    at, _, what = wanted.partition(":")
    if number != int(at):
        return
    if what:
        code = getattr(errno, what)
        raise OSError(code, os.strerror(code))
    die()


def die() -> None:
    """As a power cut does it: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def steps_before_cut(n_steps: int) -> int | None:
    """Count the steps before the cut in work that is done elsewhere in `n_steps` steps.

    Such work is a shell script on a board. Return None if the cut does not fall into it. The points
    are passed.
    """
    wanted = os.environ.get(_VARIABLE)
    if wanted is None:
        return None
    numbers = [next(_counter) for _ in range(n_steps)]
    if wanted.startswith("count:"):
        Path(wanted.removeprefix("count:")).write_text(str(numbers[-1]))
        return None
    at = int(wanted.partition(":")[0])
    return numbers.index(at) if at in numbers else None
