"""`edge watch` on a real terminal, while real processes generate beside it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.edge.engines import tiny_gguf
from tests.edge.engines.terminal import Terminal
from tests.edge.probe.test_probe_command import sshd

__all__ = ["sshd"]

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.xdist_group("watch")]

ROOT = Path(__file__).parents[3]
ENTER, LEAVE = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"
WAITING = "nothing of boardfit runs here now"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.random_llama(tmp_path_factory.mktemp("m") / "tiny-watched.gguf", n_ctx=512)


@pytest.fixture(autouse=True)
def _own_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of other tests' processes stay out of these."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@contextmanager
def generating(model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A benchmark that decodes for minutes, in a process of its own."""
    words = ["bench", str(model), "--protocol", "sustained", "--minutes", "5", "--repeats", "1"]
    out = tmp_path / f"r{time.monotonic_ns()}.jsonl"
    command = [
        sys.executable,
        "-m",
        "boardfit",
        *words,
        "--gen",
        "4",
        "--threads",
        "1",
        "-o",
        str(out),
    ]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


def worker(process: subprocess.Popen[bytes]) -> int:
    """The process that works for a command, whose own waits for it (`boardfit.edge.supervisor`)."""
    (child,) = psutil.Process(process.pid).children()
    return int(child.pid)


def looks(*options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "boardfit", "watch", "--json", "--interval", "0.3", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def until(watching: subprocess.Popen[str], holds: Any) -> dict[str, Any]:
    """The first look of a `--json` watch of which `holds` is true."""
    assert watching.stdout is not None
    deadline = time.monotonic() + 60
    for line in watching.stdout:
        look: dict[str, Any] = json.loads(line)
        if holds(look):
            return look
        assert time.monotonic() < deadline, look
    raise AssertionError("the watch has ended")


def test_a_screen_that_waits_then_shows_what_runs_then_waits_again(
    model: Path, tmp_path: Path
) -> None:
    with Terminal("watch", "--interval", "0.3", timeout_s=90) as screen:
        screen.expect(WAITING)
        assert ENTER in screen.raw and LEAVE not in screen.raw
        with generating(model, tmp_path):
            screen.expect("bench  tiny-watched")
            screen.expect("test         sustained decode")
            screen.expect(" tokens/s")
            shown = screen.expect("swap 0 B")
            assert "first token" in shown and "anonymous" in shown and "PSS" in shown
        screen.expect(WAITING)  # it was killed, and its page is still there
        screen.type("q")
        assert screen.exit_code() == 0
        assert screen.raw.rstrip().endswith(LEAVE)


def test_it_follows_the_size_of_its_window_and_ctrl_c_leaves() -> None:
    with Terminal("watch", "--interval", "30", timeout_s=60) as screen:
        _resize(screen, 100, 30)
        screen.expect(WAITING)
        screen.quiet_for(0.5)
        _resize(screen, 24, 4)  # long before the next look
        screen.expect("…")
        frame = screen.quiet_for(0.5)
        last = screen.raw.decode().rpartition("\x1b[H")[2]
        assert last.count("\r\n") <= 3, frame
        screen.interrupt()
        assert screen.exit_code() == 0
        assert screen.raw.rstrip().endswith(LEAVE)


def test_the_terminal_is_put_back_when_it_is_terminated() -> None:
    with Terminal("watch", timeout_s=60) as screen:
        screen.expect(WAITING)
        screen._process.send_signal(signal.SIGTERM)
        assert screen.exit_code() == 128 + signal.SIGTERM
        assert LEAVE in screen.raw
        echo = termios.tcgetattr(screen._fd)[3]
        assert echo & termios.ECHO and echo & termios.ICANON


def test_several_processes_and_one_that_is_killed(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "boardfit", "watch", "--json", "--interval", "0.3"]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watching,
        generating(model, tmp_path) as first,
        generating(model, tmp_path) as second,
    ):
        both = until(watching, lambda look: len(look["processes"]) == 2)
        assert {p["pid"] for p in both["processes"]} == {worker(first), worker(second)}
        look = until(watching, lambda look: all(p["decode_tps"] for p in look["processes"]))
        for process in look["processes"]:
            assert process["model"] == "tiny-watched" and process["command"] == "bench"
            assert process["memory"]["anon_bytes"] > 2**20 < process["memory"]["pss_bytes"]
        first.kill()
        left = until(watching, lambda look: len(look["processes"]) < 2)
        assert [p["pid"] for p in left["processes"]] == [worker(second)]
        watching.terminate()


def test_a_chat_between_two_answers(model: Path, tmp_path: Path) -> None:
    with Terminal("chat", str(model), "--threads", "1", "--max-tokens", "30") as talk:
        talk.expect("> ")
        talk.type("hello\n")
        talk.expect("> ")
        (look,) = looks("-n", "1")
        (process,) = look["processes"]
        assert (process["command"], process["state"]) == ("chat", "idle")
        assert process["n_requests"] == 1 and 0 < process["n_out"] <= 30
        assert process["n_threads"] == 1 and process["ttft_ns"] > 0
        talk.type("/exit\n")
        assert talk.exit_code() == 0
    assert not list((tmp_path / "boardfit").glob("*.json")), "the page goes with its process"


def test_lines_for_pipes(model: Path) -> None:
    (look,) = looks("-n", "1")
    assert look["kind"] == "boardfit-watch" and look["processes"] == []
    assert look["machine"]["ram_bytes"] > 2**28
    command = [sys.executable, "-m", "boardfit", "watch", "-n", "2", "--interval", "0.2"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert text.count(WAITING) == 2 and "\x1b" not in text


def test_a_board_behind_ssh(
    sshd: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a real sshd; the shell there reads what a service without a session would write."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with generating(model, tmp_path) as process:
        command = [
            sys.executable,
            "-m",
            "boardfit",
            "watch",
            str(sshd),
            "--json",
            "--interval",
            "0.5",
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watching:

            def found(look: dict[str, Any]) -> bool:
                mine = [p for p in look["processes"] if p["pid"] == worker(process)]
                return bool(mine and mine[0]["decode_tps"])

            look = until(watching, found)
            (mine,) = [p for p in look["processes"] if p["pid"] == worker(process)]
            assert mine["model"] == "tiny-watched" and mine["memory"]["anon_bytes"] > 2**20
            assert look["machine"]["ram_bytes"] > 2**28
            watching.terminate()


def test_a_board_that_is_not_there_is_an_error_and_no_screen() -> None:
    command = [sys.executable, "-m", "boardfit", "watch", "ssh://127.0.0.1:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 6 and "ssh://127.0.0.1:1" in done.stderr
    assert "\x1b" not in done.stdout


def _resize(screen: Terminal, columns: int, lines: int) -> None:
    size = struct.pack("HHHH", lines, columns, 0, 0)
    fcntl.ioctl(screen._fd, termios.TIOCSWINSZ, size)
    os.kill(screen._process.pid, signal.SIGWINCH)
