"""Run a function of ours in a forked copy of this process, under a limit that the kernel enforces.

Python looks at its clock, and at Ctrl-C, between two operations only; one in C may take minutes. A
fork costs milliseconds. The function must be pure Python: the child has no other threads.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

_LENGTH = struct.Struct("<Q")
#: What the parent waits beyond the child's own limit, before it kills the child itself.
_GRACE_S = 0.2
#: How long an answer may take after a Ctrl-C that is only noted, and how often that is looked at.
_PATIENCE_S, _LOOK_S = 0.3, 0.1
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
    """What `function` returns, computed in a forked child that lives `seconds` at most. Raises
    TimeoutError, ForkedDeathError when it raises or dies, OSError when no child can be started.
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
        with _noticed_interrupt() as is_interrupted:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            answer = _read_answer(reader, deadline, is_interrupted)
    finally:
        os.close(reader)
        status = _end(child, kill=answer is None)
    if answer is not None:
        return answer
    death = ForkedDeathError(status)
    if time.monotonic() >= deadline or death.signal == signal.SIGALRM:
        raise TimeoutError(f"it takes more than {seconds:g} s")
    raise death


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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent acts on it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
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


@contextlib.contextmanager
def _noticed_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C came to a handler that only takes note of it, as that of a chat does."""
    previous, noticed = signal.getsignal(signal.SIGINT), list[int]()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(previous) or previous is signal.default_int_handler:
        yield lambda: False
        return

    def take_note(number: int, frame: FrameType | None) -> None:
        noticed.append(number)
        previous(number, frame)

    signal.signal(signal.SIGINT, take_note)
    try:
        yield lambda: bool(noticed)
    finally:
        signal.signal(signal.SIGINT, previous)


def _read_answer(reader: int, deadline: float, is_interrupted: Callable[[], bool]) -> bytes | None:
    """The whole answer; None when the child or the time ends before. Raises KeyboardInterrupt
    when Ctrl-C was noticed and the answer does not follow soon.
    """
    patience = time.monotonic() + _PATIENCE_S
    taken, waiting = bytearray(), select.poll()
    waiting.register(reader, select.POLLIN)
    while len(taken) < _LENGTH.size or len(taken) < _LENGTH.size + _LENGTH.unpack_from(taken)[0]:
        now = time.monotonic()
        if now >= deadline:
            return None
        if is_interrupted() and now >= patience:
            raise KeyboardInterrupt
        if not waiting.poll(1000 * min(deadline - now, _LOOK_S)):
            continue
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
