"""Report to systemd, or another program with its protocol, that a server is ready, alive or ending.

Without one (`NOTIFY_SOCKET` not set) nothing happens.
"""

import os
import socket
import time
from contextlib import suppress

#: Longest pause between two beats where no manager names one. Seconds.
_IDLE_S = 10.0


def notify(state: str) -> None:
    """Send one message, such as `READY=1`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address.replace("@", "\0", 1))


class Heartbeat:
    """Sends WATCHDOG=1 at half the pace that the manager demands, from the loop that must not
    stand still.
    """

    def __init__(self) -> None:
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        self._is_wanted = microseconds.isdigit() and int(microseconds) > 0
        self.pause_s = min(_IDLE_S, int(microseconds) / 2e6) if self._is_wanted else _IDLE_S
        self._last_s = 0.0

    def beat(self) -> None:
        """Show that the loop moves; cheap where that was shown a moment ago."""
        if self._is_wanted and (now_s := time.monotonic()) - self._last_s >= self.pause_s / 2:
            self._last_s = now_s
            notify("WATCHDOG=1")
