"""Keep one `sh` open on a board, so that a command costs a round trip and no login.

Each command goes to the shell's standard input, wrapped so that it cannot read what follows. A
random mark on both outputs shows where its answer ends, with its exit code.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import time
from dataclasses import dataclass
from typing import Any, Protocol

from boardfit.edge.errors import DeviceError, DeviceUnreachableError, EdgeError
from boardfit.edge.fields import read_finite, refuse_constant
from boardfit.edge.process.child import PIPE, CompletedProcess, TimeoutExpired, start_child
from boardfit.edge.process.listener import Listener
from boardfit.edge.slots.files import disk_trouble
from boardfit.edge.units import printable

MAX_OUTPUT = 16 * 1024 * 1024
#: How long a shell may take to end after the connection broke.
_END_S = 5
#: How long output may stay away after the local program has ended.
_GRACE_S = 1.0
#: How often a silent shell is looked at.
_LOOK_S = 0.3
_CODE = re.compile(rb" ?([0-9]{1,3})?\s*")


@dataclass(frozen=True)
class Done:
    rc: int
    out: bytes
    err: str

    @classmethod
    def from_process(cls, got: CompletedProcess[bytes]) -> Done:
        return cls(got.returncode, got.stdout, got.stderr.decode("utf-8", "replace"))

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")

    def last_record(self) -> dict[str, Any]:
        """The JSON object on the last line of the output; empty when there is none."""
        lines = self.text.strip().splitlines()
        try:
            record = json.loads(lines[-1], parse_constant=refuse_constant, parse_float=read_finite)
        except (IndexError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}


def shell_error(place: str, output: str, rc: int) -> EdgeError:
    """Turn the message of a failed script into an error with a next step."""
    lines = [line for line in output.strip().splitlines() if line.strip()]
    text = printable(lines[-1]) if lines else f"a command left with {rc}"
    return disk_trouble(place, output, text) or DeviceError(
        f"{place}: {text}", next_step="flash again: the data already sent is kept"
    )


class Channel(Protocol):
    """How commands reach a board; `place` is the board as the user named it."""

    place: str

    def argv(self, script: str) -> list[str]:
        """A local command line that runs `sh -c script` there, with its streams and exit code."""

    def find_connection_error(self, done: Done) -> EdgeError | None:
        """The error behind a result that is the connection's and not the script's; else None."""


class ShellSession:
    """A shell on the board. Not for two threads at once."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._is_closed = False
        self._mark = secrets.token_hex(16).encode()
        self._process = start_child(channel.argv("exec sh"), stdin=PIPE, bufsize=0)
        self._listener = Listener(self._process, self.place, MAX_OUTPUT)

    @property
    def place(self) -> str:
        return self.channel.place

    def run(self, script: str, *, timeout_s: float = 60) -> Done:
        """Run a script in a subshell without input. After an error the session is of no use.

        Raises DeviceUnreachableError when the connection breaks or the whole answer does not come
        in time, DeviceError when it is too long or has no exit code.
        """
        if self._is_closed:
            raise self._broken_error()
        mark = self._mark.decode()
        text = (
            f"( eval {shlex.quote(script)}\n) </dev/null\n"
            f"printf '\\n{mark} %d\\n' $?\nprintf '\\n{mark} \\n' >&2\n"
        )
        try:
            self._listener.send(text.encode())
            self._wait(time.monotonic() + timeout_s, timeout_s)
            out, code = self._split(self._listener.out)
            err, _ = self._split(self._listener.err)
        except BaseException:
            self.close()
            raise
        return Done(code, out, err.decode("utf-8", "replace"))

    def _wait(self, end_s: float, timeout_s: float) -> None:
        """Wait until both outputs end with a line that has the mark."""
        listener = self._listener
        while not (self._is_marked(listener.out) and self._is_marked(listener.err)):
            if listener.has_ended or (
                self._process.poll() is not None and not listener.step(_GRACE_S)
            ):
                raise self._broken_error()
            if (left_s := end_s - time.monotonic()) <= 0:
                raise DeviceUnreachableError(
                    f"{self.place} did not answer within {timeout_s:.0f} s",
                    next_step="check that the board is on and reachable, then run it again",
                )
            # In short steps: a shell that was killed may leave programs that hold its outputs open.
            listener.step(min(left_s, _LOOK_S))

    def _is_marked(self, buffer: bytearray) -> bool:
        return buffer.endswith(b"\n") and self._mark in buffer[-len(self._mark) - 8 :]

    def _split(self, buffer: bytearray) -> tuple[bytes, int]:
        """The text before the mark, and the exit code behind it; the buffer is empty then."""
        text, _, rest = bytes(buffer).rpartition(b"\n" + self._mark)
        buffer.clear()
        code = _CODE.fullmatch(rest)
        if code is None or int(code[1] or 0) > 255:
            raise DeviceError(
                f"{self.place} sent no exit code behind its answer",
                next_step="check that its login runs sh and prints nothing of its own",
            )
        return text, int(code[1] or 0)

    def _broken_error(self) -> EdgeError:
        """Why the shell has ended, in the words of the connection where it has some."""
        code, output = 0, b""
        if not self._is_closed:
            try:
                self._listener.take_rest()
                code = self._process.wait(_END_S)
            except (TimeoutExpired, DeviceError):
                pass
            output = bytes(self._listener.err)
            self.close()
        done = Done(code, b"", output.decode("utf-8", "replace"))
        return self.channel.find_connection_error(done) or DeviceUnreachableError(
            f"the connection to {self.place} was lost; the current release is unchanged",
            next_step="run the same command again to resume",
        )

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._listener.close()
        process = self._process
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        try:
            process.wait(_END_S)
        except TimeoutExpired:
            process.kill()
            process.wait()
