"""Run a function of ours in a child, under limits of time and memory that the kernel enforces.

Python looks at its clock, and at Ctrl-C, between two operations only; one in C may take minutes. A
fork costs milliseconds. The function must be pure Python: the child has no other threads. Where a
fork is not safe (macOS), a module is started instead, and its memory is watched from here.
"""

import contextlib
import gc
import os
import resource
import select
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

from boardfit.edge.process.child import DEVNULL, Popen, python_argv, start_child

_LENGTH = struct.Struct("<Q")
_REQUEST = struct.Struct("<Qd")  # bytes that follow, and seconds allowed
#: What the parent waits beyond the child's own limit, before it kills the child itself.
_GRACE_S = 0.2
#: How long an answer may take after a Ctrl-C that is only noted, and how often that is looked at.
_PATIENCE_S, _LOOK_S = 0.3, 0.05
#: Memory that a child may take beyond what it starts with, and more for each byte of a request.
MEMORY_BYTES, MEMORY_PER_BYTE = 128 << 20, 16
#: Answers are read in pieces of at most this many bytes.
_CHUNK = 1 << 20


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

    It is a fork; where that is not safe, and `module` is given, `python -m MODULE` instead. That
    program calls `serve_requests` with its function.

    A fork copies the page tables of an engine's buffers, and the engine then faults on every page
    that it writes. Start a worker for many requests before such buffers exist. Requests of several
    threads wait for each other. A child that died is forked anew for the next request.
    """

    def __init__(self, function: Callable[[bytes], bytes], *, module: str | None = None) -> None:
        self._function = function
        self._module = None if can_fork() else module
        self._started: Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._child: tuple[int, int, int] | None = None  # its id, and our ends of two pipes

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
            except (BrokenPipeError, ForkedDeathError):
                if not is_old:
                    raise
                return self._ask(data, seconds)  # it may have been killed before it was asked

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._child is not None:
                self._end()

    def _ask(self, data: bytes, seconds: float) -> bytes:
        writer, reader = self._open()
        answer: bytes | None = None
        deadline = time.monotonic() + seconds + _GRACE_S
        try:
            with _noticed_interrupt() as is_interrupted:
                _write(writer, _REQUEST.pack(len(data), seconds) + data)
                may_wait = self._watch_memory(len(data))
                answer = _read_answer(reader, deadline, is_interrupted, may_wait)
        finally:
            status = self._end() if answer is None else None
        if answer is not None:
            return answer
        death = ForkedDeathError(status)
        if time.monotonic() >= deadline or death.signal == signal.SIGALRM:
            raise TimeoutError(f"it takes more than {seconds:g} s")
        raise death

    def _open(self) -> tuple[int, int]:
        """Our ends of the child's pipes, for requests and for answers."""
        if self._child is None:
            requests, answers = os.pipe(), os.pipe()
            # Blocked, so that no handler of ours runs in the child before it has its own.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                child = self._start(requests[0], answers[1], before)
                self._child = child, requests[1], answers[0]
            except OSError:
                os.close(requests[1])
                os.close(answers[0])
                raise
            finally:
                os.close(requests[0])
                os.close(answers[1])
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._child[1:]

    def _start(self, reader: int, writer: int, mask: set[int | signal.Signals]) -> int:
        """Start the child on its ends of the pipes; returns its id."""
        if self._module is not None:
            argv = python_argv(self._module)
            self._started = start_child(argv, stdin=reader, stdout=writer, stderr=DEVNULL)
            return self._started.pid
        child = _fork()
        if not child:
            _serve(self._function, reader, writer, mask)  # never returns
        return child

    def _watch_memory(self, n_bytes: int) -> Callable[[], bool]:
        """Whether a started program's memory is within its limit; a fork's is the kernel's."""
        if self._started is None or self._child is None:
            return lambda: True
        import psutil

        process = psutil.Process(self._child[0])
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
        (child, *ends), self._child = self._child, None
        for end in ends:
            os.close(end)
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
    function: Callable[[bytes], bytes], reader: int, writer: int, mask: set[int | signal.Signals]
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
                if file not in (reader, writer):
                    os.close(file)
        serve_requests(function, reader, writer)
        code = 0
    finally:
        os._exit(code)


def serve_requests(function: Callable[[bytes], bytes], reader: int, writer: int) -> None:
    """In the child: answer each request within its limits, until the parent's end is closed."""
    # If the board's memory runs out all the same, this process ends first.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    taken = _mapped_bytes()
    while head := _read(reader, _REQUEST.size):
        n_bytes, seconds = _REQUEST.unpack(head)
        _limit_memory(taken, MEMORY_BYTES + MEMORY_PER_BYTE * n_bytes)
        data = _read(reader, n_bytes)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = function(data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(writer, _LENGTH.pack(len(answer)) + answer)


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


def _read(reader: int, n_bytes: int) -> bytes:
    """The next bytes; fewer at the end."""
    taken = bytearray()
    while len(taken) < n_bytes and (chunk := os.read(reader, min(_CHUNK, n_bytes - len(taken)))):
        taken += chunk
    return bytes(taken)


def _write(writer: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(writer, rest) :]


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


def _read_answer(
    reader: int,
    deadline: float,
    is_interrupted: Callable[[], bool],
    may_wait: Callable[[], bool],
) -> bytes | None:
    """The whole answer; None when the child or the time ends before, or it may not be waited for
    any longer. Raises KeyboardInterrupt when Ctrl-C was noticed and no answer follows soon.
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
            if not may_wait():
                return None
            continue
        chunk = os.read(reader, _CHUNK)
        if not chunk:
            return None
        taken += chunk
    return bytes(taken[_LENGTH.size :])
