"""Send files through programs of this machine: a stream into `dd` on the board, or rsync.

`dd` writes each block as it was read: gathering larger blocks (obs) made it three times slower
(measured, coreutils 9.1).
"""

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from boardfit.edge.errors import DeviceUnreachableError
from boardfit.edge.flash.session import Channel, Done
from boardfit.edge.process.child import DEVNULL, Popen, start_child
from boardfit.edge.process.listener import Listener, stop
from boardfit.edge.slots.faults import fault_point
from boardfit.edge.terminal.progress import Advance

#: What dd reads at once.
_READ = 1 << 16
#: A transfer that moves nothing for so long has died. A worn card pauses for up to a minute.
STALL_S = 300
#: What a program that transfers a file may print, and what is kept of it.
MAX_WORDS, _TAIL = 1 << 20, 4096


def watch_transfer(
    process: Popen[bytes], place: str, find_position: Callable[[bytes], int], progress: Advance, *,
    seen: int = 0, look_s: float = 0.2,
) -> tuple[Done, int]:  # fmt: skip
    """Wait for the end of a program that sends a file; how it ended, and its last position.

    `find_position` gets what the program printed since the last look. Raises
    DeviceUnreachableError when it stands still, DeviceError when it prints without end.
    """
    listener, tail = Listener(process, place, MAX_WORDS), b""
    moved_s = time.monotonic()
    next_s = moved_s + look_s
    try:
        while process.poll() is None:
            if listener.has_ended:
                time.sleep(0.01)
            else:
                listener.step(look_s)
            if (now_s := time.monotonic()) < next_s:
                continue
            next_s = now_s + look_s
            printed = bytes(listener.out)
            listener.out.clear()
            tail = (tail + printed)[-_TAIL:]
            if (at := find_position(printed)) != seen:
                moved_s = now_s
            elif now_s - moved_s > STALL_S:
                raise DeviceUnreachableError(
                    f"{place} has taken no byte for {STALL_S:.0f} s",
                    next_step="check the board and its card, then run the same command to resume",
                )
            progress(at - seen)
            seen = at
        listener.take_rest()
        tail += bytes(listener.out)
    finally:  # Ctrl-C, too: no other code would end it
        listener.close()
        stop(process)
    return Done(process.returncode, tail, listener.err.decode("utf-8", "replace")), seen


def send_stream(channel: Channel, source: Path, target: str, offset: int, progress: Advance) -> int:
    """Write `source` from `offset`, a whole number of MiB, to the same place of `target` there.
    Returns the bytes sent. Raises DoesNotFitError when the disk there is full,
    DeviceUnreachableError when the connection breaks, and as `watch_transfer`.
    """
    fault_point()
    at, keep = shlex.quote(target), " conv=notrunc" if offset else ""
    script = (
        f"[ ! -L {at} ] || {{ echo {at}: is a link >&2; exit 1; }}; umask 022; LC_ALL=C "
        f"exec dd of={at} bs={_READ} seek={offset // _READ}{keep}"
    )
    with source.open("rb", buffering=0) as file:
        file.seek(offset)
        process = start_child(channel.argv(script), stdin=file, stdout=DEVNULL)
        done, seen = watch_transfer(
            process, channel.place, lambda _: os.lseek(file.fileno(), 0, os.SEEK_CUR), progress,
            seen=offset,
        )  # fmt: skip
    size = source.stat().st_size
    progress(size - seen)
    if done.rc != 0:
        raise channel.explain(done)
    fault_point()
    return size - offset
