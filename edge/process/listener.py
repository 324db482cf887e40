"""Take the answer of a child that speaks for another machine, which may lie.

Every answer has a deadline and a size limit. Nothing here waits for the end of an output, which a
process in the background may hold open.
"""

import contextlib
import os
import selectors
import time
from collections.abc import Mapping, Sequence
from typing import IO

from boardfit.edge.errors import DeviceError
from boardfit.edge.process.child import (
    DEVNULL,
    PIPE,
    CompletedProcess,
    Popen,
    TimeoutExpired,
    start_child,
)
from boardfit.edge.units import format_bytes

_READ = 1 << 16
#: How long the rest of an output may take after the process has ended.
_REST_S = 1.0


class Listener:
    """Reads a child's outputs and writes to its input, and never waits longer than asked to."""

    def __init__(self, process: Popen[bytes], who: str, most_bytes: int) -> None:
        """`who` names the machine in a message. `most_bytes` is the limit of each output."""
        self._process, self._who, self._most = process, who, most_bytes
        self._selector = selectors.DefaultSelector()
        self._pending = memoryview(b"")
        self._got = {stream: bytearray() for stream in (process.stdout, process.stderr) if stream}
        for stream in self._got:
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)
        self._n_open = len(self._got)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)

    @property
    def out(self) -> bytearray:
        """What came on stdout and was not taken yet."""
        return self._buffer(self._process.stdout)

    @property
    def err(self) -> bytearray:
        """What came on stderr and was not taken yet."""
        return self._buffer(self._process.stderr)

    @property
    def is_sending(self) -> bool:
        return bool(self._pending)

    @property
    def has_ended(self) -> bool:
        return self._n_open == 0

    def send(self, data: bytes) -> None:
        """Write to the child's input, as far as it takes it; `step` writes the rest."""
        stdin = self._process.stdin
        assert stdin is not None
        self._pending = memoryview(bytes(self._pending) + data)
        self._write(stdin)
        if self._pending and stdin not in self._selector.get_map():
            self._selector.register(stdin, selectors.EVENT_WRITE)

    def step(self, wait_s: float) -> bool:
        """Wait for at most so long, and read; whether anything came. Raises DeviceError for a
        long output.
        """
        ready = self._selector.select(max(0.0, wait_s))
        for key, _ in ready:
            stream = key.fileobj
            if stream is self._process.stdin:
                self._write(self._process.stdin)
                if not self._pending:
                    self._selector.unregister(stream)
                continue
            chunk = b""
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(key.fd, _READ)
                if not chunk:
                    self._selector.unregister(stream)
                    self._n_open -= 1
            buffer = self._got[stream]  # type: ignore[index]
            buffer += chunk
            if len(buffer) > self._most:
                raise DeviceError(
                    f"{self._who} sent more than {format_bytes(self._most)} where a short answer "
                    "was expected",
                    next_step="check that the address is that of the board, and its login files",
                )
        return bool(ready)

    def take_rest(self) -> None:
        """Read what is left after the process has ended, for a moment."""
        end_s = time.monotonic() + _REST_S
        while not self.has_ended and (left_s := end_s - time.monotonic()) > 0:
            self.step(left_s)

    def close(self) -> None:
        self._selector.close()

    def _buffer(self, stream: IO[bytes] | None) -> bytearray:
        return self._got[stream] if stream is not None else bytearray()

    def _write(self, stdin: IO[bytes]) -> None:
        try:
            while self._pending:
                self._pending = self._pending[os.write(stdin.fileno(), self._pending) :]
        except BlockingIOError:
            return
        except (BrokenPipeError, ValueError):
            self._pending = memoryview(b"")


def run_limited(
    argv: Sequence[str],
    who: str,
    *,
    timeout_s: float,
    most_bytes: int,
    input: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> CompletedProcess[bytes]:
    """Run a program that speaks for another machine. Raises FileNotFoundError without such a
    program, TimeoutExpired after `timeout_s`, DeviceError for an output of more than
    `most_bytes`.
    """
    process = start_child(argv, stdin=PIPE if input else DEVNULL, bufsize=0, env=env)
    listener = Listener(process, who, most_bytes)
    end_s = time.monotonic() + timeout_s
    try:
        if input:
            listener.send(input)
        while process.poll() is None:
            if (left_s := end_s - time.monotonic()) <= 0:
                raise TimeoutExpired(argv[0], timeout_s)
            if input and not listener.is_sending:
                process.stdin.close()  # type: ignore[union-attr]
                input = b""
            if listener.has_ended:
                with contextlib.suppress(TimeoutExpired):
                    process.wait(min(left_s, 0.2))
            else:
                listener.step(min(left_s, 0.2))
        listener.take_rest()
        return CompletedProcess(argv, process.returncode, bytes(listener.out), bytes(listener.err))
    finally:
        listener.close()
        stop(process)


def stop(process: Popen[bytes]) -> None:
    """Kill a child that still runs, and close its streams."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
