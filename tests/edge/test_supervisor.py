"""Whatever ends native code ends in one sentence with a next step, in every command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boardfit.converters.board.rehearse.limits import memory_limit
from boardfit.edge.cli import COMMANDS
from boardfit.edge.units import MIB

# Runs in place of a command: the death that native code would die.
_DEATHS = {
    "SIGILL": "os.kill(os.getpid(), signal.SIGILL)",
    "SIGSEGV": "ctypes.string_at(8)",
    "SIGBUS": "os.kill(os.getpid(), signal.SIGBUS)",
    "SIGFPE": "os.kill(os.getpid(), signal.SIGFPE)",
    "SIGABRT": "os.abort()",
}
_PROGRAM = """
import ctypes, os, signal, sys, time
import click
from boardfit.edge import cli, supervisor
@click.command(context_settings={{"ignore_unknown_options": True}})
@click.argument("rest", nargs=-1)
def command(rest):
    {body}
cli.import_command = lambda name, entry: command
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
supervisor.main()
"""
_HOG = """hog = []
    while True: hog.append(os.urandom(1 << 20))"""


def start(body: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(body=body), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(body: str, *arguments: str) -> tuple[int, str, str]:
    process = start(body, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("name", _DEATHS)
def test_the_death_of_native_code_is_one_sentence(name: str) -> None:
    code, out, err = run(_DEATHS[name], "run", "kit", "hello")
    lines = err.splitlines()
    assert code == 5 and out == ""
    assert len(lines) == 2 and lines[0].startswith("error: edge run: ") and name in lines[0]
    assert lines[1].startswith("  next: ")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_it(command: str) -> None:
    code, _, err = run("os.abort()", command)
    assert code == 5 and err.startswith(f"error: edge {command}: ")


def test_machines_get_it_as_json() -> None:
    code, out, err = run("ctypes.string_at(8)", "chat", "kit", "--json")
    record = json.loads(out)
    assert code == 5 and record["error"] == "EngineError" and record["next_step"]
    assert record["message"] in err


def test_the_words_of_a_native_assertion_are_kept() -> None:
    body = (
        "from boardfit.edge.process.last_words import leave_words; "
        'leave_words("GGML_ASSERT(x) failed"); os.abort()'
    )
    code, _, err = run(body, "run")
    assert code == 5 and "a check of the engine's own failed: GGML_ASSERT(x) failed" in err


@pytest.mark.engine
def test_an_assertion_of_the_real_library(tmp_path: Path) -> None:
    """ggml's own abort, with its own message, and neither a raw line nor a debugger."""
    body = (
        "from boardfit.edge.engines.llama import library as l; l.load_library(); "
        "from boardfit.edge.probe.ggml import find_engine_folder as f; "
        "b = ctypes.CDLL(str(f() / 'libggml-base.so')); "
        "b.ggml_abort(b'file.c', 7, b'GGML_ASSERT(%s) failed', b'n > 0')"
    )
    code, _, err = run(body, "run")
    assert code == 5 and "GGML_ASSERT(n > 0) failed" in err
    assert len(err.splitlines()) == 2, err


@pytest.mark.parametrize("code", [0, 1, 3, 130])
def test_exit_codes_pass_through(code: int) -> None:
    assert run(f"sys.exit({code})", "run") == (code, "", "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_that_ends_the_child_ends_the_parent_alike(name: str) -> None:
    code, out, err = run(f"os.kill(os.getpid(), signal.{name})", "run")
    assert (code, out, err) == (-getattr(signal, name), "", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_a_signal_sent_to_the_command_reaches_the_child_once(name: str) -> None:
    body = (
        f"signal.signal(signal.{name}, lambda n, _: (print('got', n, flush=True))); "
        "print('ready', flush=True); time.sleep(1); sys.exit(9)"
    )
    process = start(body, "run")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=60)
    assert out == f"got {int(getattr(signal, name))}\n" and process.returncode == 9


def test_ctrl_c_on_a_terminal_reaches_the_child_once() -> None:
    """The terminal sends it to both; it must not be handed on as well."""
    body = (
        "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'got it.')); "
        "os.write(1, b'ready.'); time.sleep(1); sys.exit(9)"
    )
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(body=body), "run"],
        stdin=follower, stdout=follower, stderr=follower,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while b"ready." not in seen:
        seen += os.read(leader, 100)
    os.write(leader, b"\x03")
    assert process.wait(60) == 9
    with pytest.raises(OSError):  # the end, once all is read
        while True:
            seen += os.read(leader, 100)
    assert seen.count(b"got it.") == 1


def take_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child of its parent's death")
def test_the_child_does_not_outlive_its_parent() -> None:
    process = start("print(os.getpid(), flush=True); time.sleep(60)", "run")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while time.monotonic() < end and is_running(child):
        time.sleep(0.01)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
def test_the_out_of_memory_killer_is_named() -> None:
    with memory_limit(128 * MIB) as limit:
        if limit.folder is None:
            pytest.skip("this user may not make a memory cgroup")
        alone = limit.folder / "memory.oom.group"
        if alone.exists():  # else the kernel kills the parent as well
            alone.write_text("0")
        program = [sys.executable, "-c", _PROGRAM.format(body=_HOG)]
        done = subprocess.run(
            [*limit.wrap, *program, "run", "--json"], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 4, done
    assert json.loads(done.stdout)["error"] == "DoesNotFitError"
    assert "lack of memory" in done.stderr and "next: choose a smaller context" in done.stderr
