"""Stream a file into `dd` on a board.

`dd` writes each block as it was read: gathering larger blocks (obs) made it three times slower
(measured, coreutils 9.1).
"""

import shlex
import time
from pathlib import Path

from boardfit.edge.errors import DeviceUnreachableError
from boardfit.edge.flash.session import Channel, Done
from boardfit.edge.process.child import DEVNULL, start_child
from boardfit.edge.process.listener import Listener, stop
from boardfit.edge.slots.faults import fault_point
from boardfit.edge.terminal.progress import Advance

#: What dd reads at once.
_READ = 1 << 16
#: A transfer that moves nothing for so long has died. A worn card pauses for up to a minute.
STALL_S = 300
_LOOK_S = 0.2
_MAX_WORDS = 1 << 20


def send_stream(channel: Channel, source: Path, target: str, offset: int, progress: Advance) -> int:
    """Write `source` from `offset`, a whole number of MiB, to the same place of `target` there.
    Returns the bytes sent. Raises DoesNotFitError when the disk there is full,
    DeviceUnreachableError when the connection breaks or the transfer stands still, DeviceError when
    the other side prints without end.
    """
    fault_point()
    at, keep = shlex.quote(target), " conv=notrunc" if offset else ""
    script = (
        f"[ ! -L {at} ] || {{ echo {at}: is a link >&2; exit 1; }}; umask 022; LC_ALL=C "
        f"exec dd of={at} bs={_READ} seek={offset // _READ}{keep}"
    )
    with source.open("rb", buffering=0) as file:
        seen = file.seek(offset)
        process = start_child(channel.argv(script), stdin=file, stdout=DEVNULL)
        listener, moved_s = Listener(process, channel.place, _MAX_WORDS), time.monotonic()
        try:
            while process.poll() is None:
                if listener.has_ended:
                    time.sleep(0.01)
                else:
                    listener.step(_LOOK_S)
                if (now := file.tell()) != seen:  # the program reads through the same open file
                    moved_s = time.monotonic()
                elif time.monotonic() - moved_s > STALL_S:
                    raise DeviceUnreachableError(
                        f"{channel.place} has taken no byte for {STALL_S:.0f} s",
                        next_step="check the board and its card, then run the same command to "
                        "resume",
                    )
                progress(now - seen)
                seen = now
            listener.take_rest()
        finally:  # Ctrl-C, too: no other code would end it
            listener.close()
            stop(process)
    size = source.stat().st_size
    progress(size - seen)
    if process.returncode != 0:
        words = listener.err.decode("utf-8", "replace")
        raise channel.explain(Done(process.returncode, b"", words))
    fault_point()
    return size - offset
