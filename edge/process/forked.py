"""Run a function of ours in a forked copy of this process, under a limit that the kernel enforces.

Python looks at its clock, and at Ctrl-C, between two operations only; one in C may take minutes. A
fork costs milliseconds. The function must be pure Python: the child has no other threads.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_SECONDS = struct.Struct("<d")  # begins a request: how long its answer may take
#: What the parent waits beyond the child's own limit, before it kills the child itself.
_GRACE_S = 0.2
#: How long an answer may take after a Ctrl-C that is only noted, and how often that is looked at.
_PATIENCE_S, _LOOK_S = 0.3, 0.1


class ForkedDeathError(Exception):
    """The child ended without an answer; `signal` is the signal that ended it, if one did."""

    def __init__(self, status: int | None) -> None:
        died = status is not None and os.WIFSIGNALED(status)
        self.signal = os.WTERMSIG(status) if died and status is not None else None
        super().__init__(f"a child process ended without an answer (status {status})")


def can_fork() -> bool:
    """Whether a forked copy is safe here. macOS' own libraries may not be used in one."""
    return sys.platform == "linux"


def run_forked(function: Callable[[], bytes], seconds: float) -> bytes:
    """What `function` returns, computed in a forked child that lives `seconds` at most. Raises as
    `ForkedWorker.ask`.
    """
    worker = ForkedWorker(lambda _: function())
    try:
        return worker.ask(b"", seconds)
    finally:
        worker.close()


class ForkedWorker:
    """A child that is forked once and answers requests, until it is closed.

    A fork copies the page tables of an engine's buffers, and the engine then faults on every page
    that it writes. Start a worker for many requests before such buffers exist. Requests of several
    threads wait for each other. A child that died is forked anew for the next request.
    """

    def __init__(self, function: Callable[[bytes], bytes]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._child: tuple[int, Connection] | None = None  # its id, and our end of the pipe

    def start(self) -> None:
        """Fork the child now. Raises OSError when no process can be started."""
        with self._lock:
            self._open()

    def ask(self, data: bytes, seconds: float) -> bytes:
        """What the function returns for `data`, computed within `seconds`.

        Raises TimeoutError when it takes longer, ForkedDeathError when it raises or dies, OSError
        when no child can be started. An interrupt of the caller ends the child.
        """
        with self._lock:
            is_old = self._child is not None
            try:
                return self._ask(data, seconds)
            except (ConnectionError, ForkedDeathError):
                if not is_old:
                    raise
                return self._ask(data, seconds)  # it may have been killed before it was asked

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._child is not None:
                self._end()

    def _ask(self, data: bytes, seconds: float) -> bytes:
        pipe = self._open()
        answer: bytes | None = None
        deadline = time.monotonic() + seconds + _GRACE_S
        try:
            with _noticed_interrupt() as is_interrupted:
                pipe.send_bytes(_SECONDS.pack(seconds) + data)
                answer = _receive(pipe, deadline, is_interrupted)
        finally:
            status = self._end() if answer is None else None
        if answer is not None:
            return answer
        death = ForkedDeathError(status)
        if time.monotonic() >= deadline or death.signal == signal.SIGALRM:
            raise TimeoutError(f"it takes more than {seconds:g} s")
        raise death

    def _open(self) -> Connection:
        """Our end of the child's pipe."""
        if self._child is None:
            from multiprocessing.connection import Pipe  # slow to import, and rarely needed

            ours, theirs = Pipe()
            # Blocked, so that no handler of ours runs in the child before it has its own.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                child = _fork()
                if not child:
                    _serve(self._function, theirs, before)  # never returns
                self._child = child, ours
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._child[1]

    def _end(self) -> int | None:
        """Kill and reap the child; its wait status. None where the system reaps by itself."""
        assert self._child is not None
        (child, pipe), self._child = self._child, None
        pipe.close()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        return None


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of threads that hold locks; the child takes none but Python's own.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _serve(
    function: Callable[[bytes], bytes], pipe: Connection, mask: set[int | signal.Signals]
) -> None:
    """In the child: answer until the parent's end is closed, and leave without any clean-up that is
    the parent's.
    """
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent acts on it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask - {signal.SIGALRM})
        gc.disable()  # finalizers of the parent's objects must not run
        # A copy of a pipe, socket or lock of the parent's would outlive it.
        for file in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if file != pipe.fileno():
                    os.close(file)
        with contextlib.suppress(EOFError):
            while True:
                request = pipe.recv_bytes()
                signal.setitimer(signal.ITIMER_REAL, *_SECONDS.unpack_from(request))
                answer = function(request[_SECONDS.size :])
                signal.setitimer(signal.ITIMER_REAL, 0)
                pipe.send_bytes(answer)
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


def _receive(pipe: Connection, deadline: float, is_interrupted: Callable[[], bool]) -> bytes | None:
    """The answer; None when the child or the time ends before. Raises KeyboardInterrupt when Ctrl-C
    was noticed and the answer does not follow soon.
    """
    patience = time.monotonic() + _PATIENCE_S
    while not pipe.poll(_LOOK_S):
        now = time.monotonic()
        if now >= deadline:
            return None
        if is_interrupted() and now >= patience:
            raise KeyboardInterrupt
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError):
        return None
