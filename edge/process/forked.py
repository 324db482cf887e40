"""Run a function of ours in a child, under limits of time and memory that the kernel enforces.

Python looks at its clock, and at Ctrl-C, between two operations only; one in C may take minutes. A
fork costs milliseconds. The function must be pure Python: the child has no other threads. Where a
fork is not safe (macOS), a module is started instead, and its memory is watched from here.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from boardfit.edge.process.child import DEVNULL, Popen, python_argv, start_child

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_SECONDS = struct.Struct("<d")  # begins a request: how long its answer may take
#: What the parent waits beyond the child's own limit, before it kills the child itself.
_GRACE_S = 0.2
#: How long an answer may take after a Ctrl-C that is only noted, and how often that is looked at.
_PATIENCE_S, _LOOK_S = 0.3, 0.05
#: Memory that a child may take beyond what it starts with, and more for each byte of a request.
MEMORY_BYTES, MEMORY_PER_BYTE = 128 << 20, 16


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
    """A child that is started once and answers requests, until it is closed.

    It is a fork; where that is not safe, and `module` is given, `python -m MODULE FILE` instead.
    That program calls `serve_started` with its function.

    A fork copies the page tables of an engine's buffers, and the engine then faults on every page
    that it writes. Start a worker for many requests before such buffers exist. Requests of several
    threads wait for each other. A child that died is forked anew for the next request.
    """

    def __init__(self, function: Callable[[bytes], bytes], *, module: str | None = None) -> None:
        self._function = function
        self._module = None if can_fork() else module
        self._started: Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._child: tuple[int, Connection] | None = None  # its id, and our end of the pipe

    def start(self) -> None:
        """Fork the child now. Raises OSError when no process can be started."""
        with self._lock:
            self._open()

    def ask(self, data: bytes, seconds: float) -> bytes:
        """What the function returns for `data`, computed within `seconds`.

        Raises TimeoutError when it takes longer, ForkedDeathError when it raises, dies or takes
        too much memory, OSError when no child can be started. An interrupt of the caller ends it.
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
                answer = _receive(pipe, deadline, is_interrupted, self._watch_memory(len(data)))
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
                self._child = self._start(theirs, before), ours
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._child[1]

    def _start(self, pipe: Connection, mask: set[int | signal.Signals]) -> int:
        """Start the child on its end of the pipe; returns its id."""
        if self._module is not None:
            argv, ends = python_argv(self._module, str(pipe.fileno())), (pipe.fileno(),)
            self._started = start_child(argv, stdout=DEVNULL, stderr=DEVNULL, pass_fds=ends)
            return self._started.pid
        child = _fork()
        if not child:
            _serve(self._function, pipe, mask)  # never returns
        return child

    def _watch_memory(self, n_bytes: int) -> Callable[[], bool]:
        """Whether a started program's memory is within its limit; a fork's is the kernel's."""
        if self._started is None:
            return lambda: True
        import psutil

        process = psutil.Process(self._started.pid)
        most = process.memory_info().rss + MEMORY_BYTES + MEMORY_PER_BYTE * n_bytes

        def is_within() -> bool:
            try:
                return bool(process.memory_info().rss <= most)
            except psutil.Error:
                return False

        return is_within

    def _end(self) -> int | None:
        """Kill and reap the child; its wait status. None where the system reaps by itself."""
        assert self._child is not None
        (child, pipe), self._child = self._child, None
        pipe.close()
        if self._started is not None:
            self._started.returncode = 0  # it is reaped here
            self._started = None
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
        gc.freeze()  # finalizers of the parent's objects must not run
        gc.enable()
        # A copy of a pipe, socket or lock of the parent's would outlive it.
        for file in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if file != pipe.fileno():
                    os.close(file)
        _answer_requests(function, pipe)
        code = 0
    finally:
        os._exit(code)


def serve_started(function: Callable[[bytes], bytes], file: str) -> None:
    """In a program that `ForkedWorker` started: answer over the pipe `file`."""
    from multiprocessing.connection import Connection

    _answer_requests(function, Connection(int(file)))


def _answer_requests(function: Callable[[bytes], bytes], pipe: Connection) -> None:
    """Answer each request within its limits, until the parent's end is closed."""
    # If the board's memory runs out all the same, this process ends first.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    taken = _mapped_bytes()
    with contextlib.suppress(EOFError):
        while True:
            request = pipe.recv_bytes()
            _limit_memory(taken, MEMORY_BYTES + MEMORY_PER_BYTE * len(request))
            signal.setitimer(signal.ITIMER_REAL, *_SECONDS.unpack_from(request))
            answer = function(request[_SECONDS.size :])
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send_bytes(answer)


def _mapped_bytes() -> int | None:
    """Bytes of this process's address space; None where the kernel does not list them."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def _limit_memory(taken: int | None, more: int) -> None:
    if taken is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = taken + more
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


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


def _receive(
    pipe: Connection,
    deadline: float,
    is_interrupted: Callable[[], bool],
    is_within: Callable[[], bool],
) -> bytes | None:
    """The answer; None when the child or the time ends before, or its memory is not within its
    limit. Raises KeyboardInterrupt when Ctrl-C was noticed and no answer follows soon.
    """
    patience = time.monotonic() + _PATIENCE_S
    while not pipe.poll(_LOOK_S):
        now = time.monotonic()
        if now >= deadline or not is_within():
            return None
        if is_interrupted() and now >= patience:
            raise KeyboardInterrupt
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError):
        return None
