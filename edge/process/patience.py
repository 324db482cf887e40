"""Wait for a call that may never return: a server may send a byte a minute.

The call runs in a thread of its own, which goes on in the background when it is given up.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LOOK_S = 0.5


def call_within(call: Callable[[], T], timeout_s: float) -> T:
    return call_while_moving(call, lambda: 0, timeout_s)


def call_while_moving(call: Callable[[], T], position: Callable[[], int], stall_s: float) -> T:
    """The call's result. Raises TimeoutError when `position` stands still for `stall_s`."""
    ends: queue.SimpleQueue[tuple[list[T], BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ends.put(([call()], None))
        except BaseException as error:  # it is raised again where it is waited for
            ends.put(([], error))

    threading.Thread(target=run, daemon=True).start()
    at, since_s = position(), time.monotonic()
    while True:
        try:
            result, error = ends.get(timeout=min(_LOOK_S, stall_s))
        except queue.Empty:
            if (now := position()) != at:
                at, since_s = now, time.monotonic()
            if time.monotonic() - since_s >= stall_s:
                raise TimeoutError(f"nothing came for {stall_s:.0f} s") from None
            continue
        if error is not None:
            raise error
        return result[0]


class LeastSpeed:
    """Notices a sender that is slower than a least speed over a while."""

    def __init__(self, least_bytes_s: float = 1024, window_s: float = 60) -> None:
        self._least, self._window_s = least_bytes_s, window_s
        self._n, self._since_s = 0, time.monotonic()

    def add(self, n_bytes: int) -> bool:
        """Count what has come; whether the sender is fast enough."""
        self._n += n_bytes
        elapsed_s = time.monotonic() - self._since_s
        if elapsed_s < self._window_s:
            return True
        is_fast = self._n >= self._least * elapsed_s
        self._n, self._since_s = 0, time.monotonic()
        return is_fast
