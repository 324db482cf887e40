"""Stream a file into `dd` on the board, from any block. The board needs only sh and dd. An
abandoned sender may write the same bytes to the same places again, which is harmless.

The file itself is the sender's standard input, so that no byte passes through Python; how far it is
shows in the descriptor's offset, which both processes share.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

from boardfit.edge.flash.session import Channel, Done
from boardfit.edge.flash.shell_files import shell_error
from boardfit.edge.process.child import DEVNULL, TimeoutExpired, start_child
from boardfit.edge.slots.faults import fault_point
from boardfit.edge.terminal.progress import Advance

#: What a part may be cut back to.
BLOCK = 1 << 20
#: What dd reads at once. It writes each block as it was read: gathering larger blocks (obs) made it
#: three times slower (measured, coreutils 9.1).
_READ = 1 << 16
_LOOK_S = 0.2


def send_stream(channel: Channel, source: Path, target: str, offset: int, progress: Advance) -> int:
    """Write `source` from `offset`, a multiple of BLOCK, to the same place of `target` there.
    Returns the bytes sent.

    Raises DoesNotFitError when the disk there is full, DeviceUnreachableError when the connection
    breaks.
    """
    fault_point()
    keep = " conv=notrunc" if offset else ""
    at = shlex.quote(target)
    script = (
        f"[ ! -L {at} ] || {{ echo {at}: is a link >&2; exit 1; }}; "
        f"umask 022; LC_ALL=C exec dd of={at} bs={_READ} "
        f"seek={offset // _READ}{keep}"
    )
    with source.open("rb", buffering=0) as file:
        file.seek(offset)
        process = start_child(channel.argv(script), stdin=file, stdout=DEVNULL)
        seen = offset
        try:
            while True:
                with contextlib.suppress(TimeoutExpired):
                    _, err = process.communicate(timeout=_LOOK_S)
                    break
                now = os.lseek(file.fileno(), 0, os.SEEK_CUR)
                progress(now - seen)
                seen = now
        except BaseException:  # Ctrl-C: no other code would end it
            process.kill()
            process.communicate()
            raise
        progress(source.stat().st_size - seen)
    done = Done(process.returncode, b"", err.decode("utf-8", "replace"))
    if error := channel.find_connection_error(done):
        raise error
    if done.rc != 0:
        raise shell_error(channel.place, done.err, done.rc)
    fault_point()
    return source.stat().st_size - offset
