"""Keep one `sh` open on a board, so that a command costs a round trip and no login.

Each command goes to the shell's standard input, wrapped so that it cannot read what follows; a
random mark on both outputs shows where its answer ends, with its exit code.
"""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import time
from dataclasses import dataclass
from typing import Protocol

from boardfit.edge.errors import DeviceUnreachableError, EdgeError, InputError
from boardfit.edge.process.child import PIPE, TimeoutExpired, start_child

MAX_OUTPUT = 16 * 1024 * 1024
_READ = 1 << 16


@dataclass(frozen=True)
class Done:
    """How a command on the board ended."""

    rc: int
    out: bytes
    err: str


class Channel(Protocol):
    """How commands reach a board."""

    @property
    def place(self) -> str:
        """The board as the user named it."""

    def argv(self, script: str) -> list[str]:
        """A local command line that runs `sh -c script` there, with its stdin, stdout, stderr and
        exit code.
        """

    def find_connection_error(self, done: Done) -> EdgeError | None:
        """The error behind a result that is the connection's and not the script's; else None."""


class ShellSession:
    """A shell on the board. Not for two threads at once."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._mark = secrets.token_hex(16).encode()
        self._process = start_child(channel.argv("exec sh"), stdin=PIPE, bufsize=0)

    @property
    def place(self) -> str:
        return self.channel.place

    def run(self, script: str, *, timeout_s: float = 60) -> Done:
        """Run a script in a subshell without input.

        Raises DeviceUnreachableError when the connection breaks or nothing comes back in time; the
        session is of no use after that.
        """
        mark = self._mark.decode()
        text = (
            f"( eval {shlex.quote(script)}\n) </dev/null\n"
            f"printf '\\n{mark} %d\\n' $?\nprintf '\\n{mark} \\n' >&2\n"
        )
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.write(text.encode())
        except (BrokenPipeError, ValueError):
            raise self._broken_error(b"") from None
        outputs = self._collect(time.monotonic() + timeout_s, timeout_s)
        (out, code), (err, _) = (self._split(data) for data in outputs)
        return Done(int(code), out, err.decode("utf-8", "replace"))

    def _collect(self, end_s: float, timeout_s: float) -> tuple[bytes, bytes]:
        process = self._process
        assert process.stdout is not None and process.stderr is not None
        got = {process.stdout: bytearray(), process.stderr: bytearray()}
        with selectors.DefaultSelector() as selector:
            for stream in got:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, end_s - time.monotonic()))
                if not ready:
                    self.close()
                    raise DeviceUnreachableError(
                        f"{self.place} did not answer within {timeout_s:.0f} s",
                        next_step="check that the board is on and reachable, then run it again",
                    )
                for key, _ in ready:
                    buffer = got[key.fileobj]  # type: ignore[index]
                    chunk = os.read(key.fd, _READ)
                    buffer += chunk
                    if not chunk:
                        raise self._broken_error(bytes(got[process.stderr]))
                    if len(buffer) > MAX_OUTPUT:
                        self.close()
                        raise InputError(f"{self.place} sent more than {MAX_OUTPUT} bytes")
                    if self._mark in buffer[-len(chunk) - 64 :] and buffer.endswith(b"\n"):
                        selector.unregister(key.fileobj)
        return bytes(got[process.stdout]), bytes(got[process.stderr])

    def _split(self, data: bytes) -> tuple[bytes, bytes]:
        text, _, code = data.rpartition(b"\n" + self._mark)
        return text, code.strip() or b"0"

    def _broken_error(self, output: bytes) -> EdgeError:
        process = self._process
        assert process.stderr is not None
        try:
            process.wait(10)
            output += process.stderr.read() or b""
        except (TimeoutExpired, ValueError, OSError):
            pass
        self.close()
        done = Done(process.returncode or 0, b"", output.decode("utf-8", "replace"))
        return self.channel.find_connection_error(done) or DeviceUnreachableError(
            f"the connection to {self.place} was lost; the current release is unchanged",
            next_step="run the same command again to resume",
        )

    def close(self) -> None:
        """End the shell. Calling it twice is fine."""
        process = self._process
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        try:
            process.wait(5)
        except TimeoutExpired:
            process.kill()
            process.wait()
