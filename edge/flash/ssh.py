"""`ssh://user@host:port/path`: the user's own OpenSSH, with its keys, agents, jump hosts and
~/.ssh/config. It never asks for anything, and host keys are always checked.

One connection carries everything. Its master leaves by itself some seconds after its last use.
"""

import os
import re
import shlex
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from boardfit.edge.errors import DeviceError, DeviceUnreachableError, EdgeError
from boardfit.edge.flash.session import Channel, Done
from boardfit.edge.flash.shell_files import ShellBoard, shell_error
from boardfit.edge.flash.ssh_channel import HAS_AES, SshChannel, has_aes
from boardfit.edge.flash.target import FlashTarget
from boardfit.edge.process import child
from boardfit.edge.process.child import DEVNULL, Popen, start_child
from boardfit.edge.process.listener import Listener, stop
from boardfit.edge.slots.faults import fault_point
from boardfit.edge.slots.layout import PARTS
from boardfit.edge.terminal.progress import Advance
from boardfit.edge.units import printable

#: A file of this size pays for a connection of its own with a quicker cipher.
_QUICK_LEAST_BYTES = 64 << 20
_RSYNC_SILENCE_S, _SFTP_LOOK_S = 60, 1
#: How files are sent: patched by rsync where there is something similar, else streamed into dd.
VIA = ("auto", "rsync", "sftp", "stream")
_RSYNC_LEAST = (3, 1)
_PERCENT = re.compile(rb"\s([0-9]{1,3})%")


class SshBoard(ShellBoard):
    def __init__(
        self, target: FlashTarget, *, config: Path | None = None, via: str = "auto"
    ) -> None:
        self._via = via
        self._channel = SshChannel(target, config)
        try:
            self._channel.connect()
            super().__init__(self._channel, target.folder)
            self.files.resolve()
        except BaseException:
            self._channel.close()
            raise

    def resume_from(self, n_there: int) -> int:
        return max(0, n_there - 1) // BLOCK * BLOCK

    def send(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        if self._via == "sftp":
            return self._send_sftp(source, part, offset, progress)
        channel = self._channel
        if source.stat().st_size - offset >= _QUICK_LEAST_BYTES:
            channel = self._quick or channel
        return send_stream(channel, source, f"{self.files.root}/{part}", offset, progress)

    @cached_property
    def _quick(self) -> SshChannel | None:
        """A second connection for what is large; None where it would not be quicker."""
        if not has_aes() or self._session.run(HAS_AES).rc != 0:
            return None
        return self._channel.quicker()

    def _send_sftp(self, source: Path, part: str, offset: int, progress: Advance) -> int:
        """Through the sftp subsystem. `reput` writes only what is missing, and never truncates, so
        that a forgotten sender does no harm.
        """
        size, path = source.stat().st_size, f"{self.files.root}/{part}"
        there = shlex.quote(path)
        if offset:
            block = f"dd if=/dev/null of={there} bs={BLOCK} seek={offset // BLOCK} 2>/dev/null"
            self.files.do(block)  # cuts the last block off, which may be half written
        else:
            self.files.do(f": > {there}")
        if size == offset:
            return 0
        command = ["sftp", "-q", "-b", "-", *self._channel.options(), "--", self._channel.address]
        batch = f"reput {quote_sftp(str(source.absolute()))} {quote_sftp(path)}\n"

        def find_size(_: bytes) -> int:
            now = self.files.entries(PARTS).get(part.rpartition("/")[2])
            return now.n_bytes if now else offset

        process = child.start_child(command, stdin=child.PIPE, stdout=child.DEVNULL, bufsize=0)
        done, seen = watch_transfer(
            process, self.place, find_size, progress, seen=offset, look_s=_SFTP_LOOK_S,
            batch=batch.encode(),
        )  # fmt: skip
        if done.rc != 0:
            lost = self._channel.find_connection_error(
                Done(255 if "onnection" in done.err else 1, b"", done.err)
            )
            raise lost or shell_error(self.place, done.err, done.rc)
        progress(size - seen)
        return size - offset

    def can_patch(self) -> bool:
        return self._via in ("auto", "rsync") and self._rsync

    @cached_property
    def _rsync(self) -> bool:
        if child.find_program("rsync") is None:
            return False
        here = child.run_child(["rsync", "--version"]).stdout
        there = self._session.run("rsync --version 2>/dev/null; exit 0").out
        return all(is_rsync(text) for text in (here, there))

    def patch(self, source: Path, part: str, progress: Advance) -> int:
        shell = shlex.join(["ssh", "-T", *self._channel.options()])
        # A receiver that a dead sender left behind must end before the next one begins.
        lock = shlex.quote(f"{self.files.root}/.receive.lock")
        there = (
            "sh -c 'if flock -w 0 /dev/null true 2>/dev/null; "
            f'then exec flock -w {2 * _RSYNC_SILENCE_S} "$0" rsync "$@"; '
            f'else exec rsync "$@"; fi\' {lock}'
        )
        command = [
            # Times are ignored: a copy made within the second in which the source was written would
            # count as the source, and stay as it is.
            *("rsync", "--inplace", "--ignore-times", "--no-whole-file", "--protect-args"),
            *("--stats", "--info=progress2", "--no-human-readable"),
            *(f"--timeout={_RSYNC_SILENCE_S}", "--rsync-path", there, "-e", shell),
            *("--", str(source.absolute()), f"{self._channel.address}:{self.files.root}/{part}"),
        ]
        size, position = source.stat().st_size, 0

        def find_position(printed: bytes) -> int:
            nonlocal position
            if found := _PERCENT.findall(printed):
                position = size * min(100, int(found[-1])) // 100
            return position

        process = child.start_child(command, env=child.child_environment(LC_ALL="C"))
        done, _ = watch_transfer(process, self.place, find_position, progress, look_s=1.0)
        if done.rc != 0:
            raise self._rsync_error(done.rc, done.err)
        return rsync_traffic(done.out.decode("utf-8", "replace"))

    def _rsync_error(self, code: int, output: str) -> EdgeError:
        if code in (10, 12, 30, 35, 255) and "No space left" not in output:
            return self._channel.find_connection_error(Done(255, b"", output)) or DeviceError(
                f"{self.place}: {printable(output, 300)}"
            )
        return shell_error(self.place, output, code)

    def close(self) -> None:
        if (quick := self.__dict__.get("_quick")) is not None:
            quick.close()
        super().close()
        self._channel.close()


def quote_sftp(path: str) -> str:
    """A path in an sftp batch file; within quotes nothing is a pattern."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def is_rsync(text: bytes) -> bool:
    """Whether `rsync --version` shows the real one, new enough. macOS ships openrsync, which knows
    neither --protect-args nor --info.
    """
    found = re.match(rb"rsync\s{1,9}version v?([0-9]{1,4})\.([0-9]{1,4})", text)
    return found is not None and (int(found[1]), int(found[2])) >= _RSYNC_LEAST


def rsync_traffic(stats: str) -> int:
    """Bytes that crossed the connection in both directions, from rsync's --stats."""
    found = re.findall(r"Total bytes (?:sent|received): ([0-9,.]{1,24})", stats)
    return sum(int(re.sub(r"[,.]", "", number) or 0) for number in found)


#: What a part may be cut back to.
BLOCK = 1 << 20
#: What dd reads at once. It writes each block as it was read: gathering larger blocks (obs) made it
#: three times slower (measured, coreutils 9.1).
_READ = 1 << 16
_LOOK_S = 0.2
#: A transfer that moves nothing for so long has died. A worn card pauses for up to a minute.
STALL_S = 300
#: What a program that transfers a file may print, and what is kept of it.
MAX_WORDS, _TAIL = 1 << 20, 4096


class StallClock:
    def __init__(self, place: str, stall_s: float = STALL_S) -> None:
        self._place, self._stall_s = place, stall_s
        self._at, self._since_s = -1, time.monotonic()

    def check(self, at: int) -> None:
        """Raise DeviceUnreachableError when `at` has not changed for too long."""
        now_s = time.monotonic()
        if at != self._at:
            self._at, self._since_s = at, now_s
        elif now_s - self._since_s > self._stall_s:
            raise DeviceUnreachableError(
                f"{self._place} has taken no byte for {self._stall_s:.0f} s",
                next_step="check the board and its card, then run the same command to resume",
            )


def watch_transfer(
    process: Popen[bytes], place: str, find_position: Callable[[bytes], int], progress: Advance, *,
    seen: int = 0, look_s: float = _LOOK_S, batch: bytes = b"",
) -> tuple[Done, int]:  # fmt: skip
    """Wait for the end of a program that sends a file; how it ended, and its last position.

    `find_position` gets what the program printed since the last look, `batch` is its input. Raises
    DeviceUnreachableError when it stands still, DeviceError when it prints without end.
    """
    listener, clock = Listener(process, place, MAX_WORDS), StallClock(place)
    tail, next_s = b"", time.monotonic() + look_s
    try:
        if batch:
            listener.send(batch)
        while process.poll() is None:
            if batch and process.stdin is not None and not listener.is_sending:
                process.stdin.close()
            if listener.has_ended:
                time.sleep(0.01)
            else:
                listener.step(look_s)
            if time.monotonic() < next_s:
                continue
            next_s = time.monotonic() + look_s
            printed = bytes(listener.out)
            listener.out.clear()
            tail = (tail + printed)[-_TAIL:]
            now = find_position(printed)
            clock.check(now)
            progress(now - seen)
            seen = now
        listener.take_rest()
        tail += bytes(listener.out)
    finally:  # Ctrl-C, too: no other code would end it
        listener.close()
        stop(process)
    return Done(process.returncode, tail, listener.err.decode("utf-8", "replace")), seen


def send_stream(channel: Channel, source: Path, target: str, offset: int, progress: Advance) -> int:
    """Write `source` from `offset`, a multiple of BLOCK, to the same place of `target` there.
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
        raise channel.find_connection_error(done) or shell_error(channel.place, done.err, done.rc)
    fault_point()
    return size - offset
