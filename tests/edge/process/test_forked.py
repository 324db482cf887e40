"""A forked child computes under a limit, and its end is the caller's to see."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import psutil
import pytest

from boardfit.edge.process.forked import ForkedDeathError, ForkedWorker, can_fork, run_forked

pytestmark = pytest.mark.skipif(not can_fork(), reason="no safe fork here")


def compute_for_ever() -> bytes:
    return bytes(sum(itertools.repeat(1)))  # one call of C


def test_a_large_answer_arrives_whole() -> None:
    answer = os.urandom(3 << 20)
    assert run_forked(lambda: answer, 10) == answer
    assert run_forked(lambda: b"", 10) == b""


def test_the_kernel_ends_what_takes_too_long() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        run_forked(compute_for_ever, 0.3)
    assert time.monotonic() - start < 2


def test_an_interrupt_reaches_the_caller_and_ends_the_child() -> None:
    before = psutil.Process().children()
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_forked(compute_for_ever, 20)
    assert time.monotonic() - start < 1.2
    assert psutil.Process().children() == before  # none is left


def test_an_error_and_a_signal_are_told_apart() -> None:
    with pytest.raises(ForkedDeathError) as caught:
        run_forked(lambda: b"" * (1 // 0), 10)
    assert caught.value.signal is None
    with pytest.raises(ForkedDeathError) as caught:
        run_forked(lambda: bytes(os.kill(os.getpid(), signal.SIGKILL) or 0), 10)
    assert caught.value.signal == signal.SIGKILL


def test_an_interrupt_that_is_only_noted_ends_what_takes_long() -> None:
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert run_forked(lambda: b"x", 10) == b"x"
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_forked(compute_for_ever, 20)
        assert time.monotonic() - start < 1.2 and len(noted) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_caller_that_ignores_interrupts_has_a_child_that_does() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_forked(lambda: b"x" * (os.kill(os.getpid(), signal.SIGINT) is None), 10) == b"x"
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_may_ask_at_the_same_time() -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(run_forked(lambda: bytes([i]), 10)))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [bytes([i]) for i in range(8)]


def test_the_caller_keeps_its_signals() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    run_forked(lambda: b"x", 10)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert handlers == [
        signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    ]


def test_one_child_answers_many_requests_and_is_forked_anew_when_it_died() -> None:
    def answer(data: bytes) -> bytes:
        if data == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"compute":
            compute_for_ever()
        return b"%d %s" % (os.getpid(), data[:3])

    before = psutil.Process().children()  # of other tests in this process
    worker = ForkedWorker(answer)
    try:
        first, second = worker.ask(b"one" * (1 << 20), 10), worker.ask(b"two", 10)
        assert first.split()[0] == second.split()[0] != b"%d" % os.getpid()
        with pytest.raises(TimeoutError):
            worker.ask(b"compute", 0.3)
        third = worker.ask(b"one", 10).split()
        assert third[0] != first.split()[0]
        with pytest.raises(ForkedDeathError):
            worker.ask(b"die", 10)
        idle = psutil.Process(int(worker.ask(b"", 10).split()[0]))
        idle.kill()  # the kernel may, for want of memory
        assert worker.ask(b"one", 10).endswith(b" one")
    finally:
        worker.close()
    assert set(psutil.Process().children()) <= set(before)


def test_a_worker_holds_no_file_of_its_parents_and_ends_with_it() -> None:
    reader, writer = os.pipe()
    worker = ForkedWorker(lambda data: " ".join(os.listdir("/proc/self/fd")).encode())
    try:
        assert str(writer).encode() not in worker.ask(b"", 10).split()
        os.close(writer)
        assert os.read(reader, 1) == b""  # the end: no copy is open elsewhere
    finally:
        os.close(reader)
        worker.close()
