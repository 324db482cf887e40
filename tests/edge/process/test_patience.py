"""Calls that never return, senders that drip, outputs without end."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from boardfit.edge.errors import DeviceError
from boardfit.edge.process.child import TimeoutExpired
from boardfit.edge.process.listener import run_limited
from boardfit.edge.process.patience import LeastSpeed, call_while_moving, call_within


def test_a_call_returns_its_result_or_its_exception() -> None:
    assert call_within(lambda: 5, 5) == 5
    with pytest.raises(ZeroDivisionError):
        call_within(lambda: 1 // 0, 5)


def test_a_call_that_never_returns_is_given_up() -> None:
    never = threading.Event()
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match="nothing came for"):
        call_within(never.wait, 0.1)
    assert time.monotonic() - began_s < 5
    never.set()


def test_a_call_that_moves_may_take_longer() -> None:
    at = [0]

    def move() -> str:
        for _ in range(8):
            time.sleep(0.1)
            at[0] += 1
        return "there"

    assert call_while_moving(move, lambda: at[0], 0.4) == "there"


def test_a_drip_is_too_slow() -> None:
    drip, stream = LeastSpeed(1000, 0.05), LeastSpeed(1000, 0.05)
    time.sleep(0.06)
    assert not drip.add(1) and stream.add(5000)


def program(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_an_answer_has_a_limit_and_a_deadline() -> None:
    done = run_limited(
        program("import sys; print(sys.stdin.read()); sys.exit(3)"), "b", input=b"x" * 300_000,
        timeout_s=30, most_bytes=1 << 20,
    )  # fmt: skip
    assert (done.returncode, len(done.stdout)) == (3, 300_001)
    for stream in ("stdout", "stderr"):
        endless = program(f"import sys\nwhile True: sys.{stream}.write('x' * 65536)")
        with pytest.raises(DeviceError, match="b sent more than"):
            run_limited(endless, "b", timeout_s=30, most_bytes=1 << 20)
    with pytest.raises(TimeoutExpired):
        run_limited(program("import time; time.sleep(60)"), "b", timeout_s=0.3, most_bytes=9)


def test_a_process_in_the_background_holds_up_nothing() -> None:
    began_s = time.monotonic()
    done = run_limited(["sh", "-c", "echo a; sleep 20 &"], "b", timeout_s=15, most_bytes=99)
    assert done.stdout == b"a\n" and time.monotonic() - began_s < 10
