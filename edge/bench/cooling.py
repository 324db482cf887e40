"""Wait for a cool board before a bench, or flag the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from boardfit.edge.bench.heat import read_heat
from boardfit.edge.terminal.progress import Say

MAX_WAIT_S = 600.0
_EVERY_S = 2.0


def wait_until_cool(
    below_c: float,
    *,
    read: Callable[[], float | None] = lambda: read_heat().temp_c,
    max_wait_s: float = MAX_WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
    say: Say = lambda text: None,
) -> str | None:
    """Wait until the hottest sensor reads less than `below_c` °C, at most `max_wait_s`. Returns
    what to flag: too warm after the wait, or no sensor; None when the board is cool.
    """
    waited = 0.0
    while (temp_c := read()) is not None and temp_c >= below_c and waited < max_wait_s:
        say(f"cooling: {temp_c:.0f} °C, waiting for less than {below_c:g}")
        sleep(_EVERY_S)
        waited += _EVERY_S
    if temp_c is None:
        return "start temperature unknown: no sensor was readable"
    if temp_c >= below_c:
        return f"warm start: {temp_c:.0f} °C after {waited:.0f} s of cooling, asked for {below_c:g}"
    return None
