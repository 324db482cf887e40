"""Run a function of ours in a forked copy of this process, under a limit that the kernel enforces.

Python looks at its clock, and at Ctrl-C, between two operations only: one operation in C may take
minutes. A child can be killed in the middle of it. A fork costs milliseconds and no memory, unlike
a new interpreter. The function must be pure Python: other threads do not exist in the child.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable

_LENGTH = struct.Struct("<Q")
#: What the parent waits beyond the child's own limit, before it kills the child itself.
_GRACE_S = 0.2
#: Answers are read in pieces of at most this many bytes.
_CHUNK = 1 << 20


class ForkedDeathError(Exception):
    """The child ended without an answer; `signal` is the signal that ended it, if one did."""

    def __init__(self, status: int | None) -> None:
        died = status is not None and os.WIFSIGNALED(status)
        self.signal = os.WTERMSIG(status) if died and status is not None else None
        super().__init__(f"a child process ended without an answer (status {status})")


def can_fork() -> bool:
    """Whether a forked copy is safe here: macOS' own libraries may not be used in one."""
    return hasattr(os, "fork") and sys.platform != "darwin"


def run_forked(function: Callable[[], bytes], seconds: float) -> bytes:
    """What `function` returns, computed in a forked child that lives `seconds` at most.

    Raises TimeoutError when it takes longer, ForkedDeathError when it raises or dies, OSError when
    no child can be started. An interrupt of the caller ends the child.
    """
    reader, writer = os.pipe()
    # Blocked, so that no handler of ours runs in the child before it has its own.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        child = _fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if not child:
        _answer(function, writer, seconds, before)  # never returns
    os.close(writer)
    answer: bytes | None = None
    deadline = time.monotonic() + seconds + _GRACE_S
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        answer = _read_answer(reader, deadline)
    finally:
        os.close(reader)
        status = _end(child, kill=answer is None)
    if answer is not None:
        return answer
    if time.monotonic() >= deadline or ForkedDeathError(status).signal == signal.SIGALRM:
        raise TimeoutError(f"it takes more than {seconds:g} s")
    raise ForkedDeathError(status)


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of threads that hold locks; the child takes none but Python's own.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _answer(
    function: Callable[[], bytes], writer: int, seconds: float, mask: set[int | signal.Signals]
) -> None:
    """In the child: compute, write, and leave without any clean-up that is the parent's."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        gc.disable()  # finalizers of the parent's objects must not run
        answer = function()
        data = memoryview(_LENGTH.pack(len(answer)) + answer)
        while data:
            data = data[os.write(writer, data) :]
        code = 0
    finally:
        os._exit(code)


def _read_answer(reader: int, deadline: float) -> bytes | None:
    """The whole answer; None when the child ends, or the deadline passes, before it is there."""
    taken, waiting = bytearray(), select.poll()
    waiting.register(reader, select.POLLIN)
    while len(taken) < _LENGTH.size or len(taken) < _LENGTH.size + _LENGTH.unpack_from(taken)[0]:
        left = deadline - time.monotonic()
        if left <= 0 or not waiting.poll(1000 * left):
            return None
        chunk = os.read(reader, _CHUNK)
        if not chunk:
            return None
        taken += chunk
    return bytes(taken[_LENGTH.size :])


def _end(child: int, *, kill: bool) -> int | None:
    """Reap the child; returns its wait status. None where the system reaps by itself."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        if kill:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    return None
