"""A file into `dd` on the board, from any block on. Needs nothing there but sh and dd; writing the
same bytes to the same places again is harmless, which a forgotten sender may do.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from edge.flash.board import Progress
from edge.flash.session import Channel, Done
from edge.flash.shell_files import shell_error
from edge.slots.faults import fault_point

BLOCK = 1 << 16
_CHUNK = 1 << 20


def send_stream(
    channel: Channel, source: Path, target: str, offset: int, progress: Progress
) -> int:
    """Write `source` from `offset`, a multiple of BLOCK, to the same place of `target` there, and
    flush it. Returns the bytes sent.

    Raises DoesNotFitError when the disk there is full, DeviceUnreachableError when the connection
    breaks.
    """
    fault_point()
    keep = "notrunc,fsync" if offset else "fsync"
    script = (
        f"umask 022; LC_ALL=C exec dd of={shlex.quote(target)} bs={BLOCK} "
        f"seek={offset // BLOCK} conv={keep}"
    )
    sent = 0
    with (
        source.open("rb") as file,
        subprocess.Popen(
            channel.argv(script), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None and process.stderr is not None
        file.seek(offset)
        try:
            while chunk := file.read(_CHUNK):
                process.stdin.write(chunk)
                sent += len(chunk)
                progress(len(chunk))
                fault_point()
            process.stdin.close()
        except BrokenPipeError:
            pass  # its exit code and last words say why
        said = process.stderr.read().decode("utf-8", "replace")
        code = process.wait()
    done = Done(code, b"", said)
    if error := channel.lost(done):
        raise error
    if code != 0:
        raise shell_error(channel.place, said, code)
    return sent
