"""The one door for child processes: what passes through it, and that there is no other."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

from boardfit.edge.process.child import (
    TimeoutExpired,
    child_environment,
    decode_output,
    find_program,
    python_argv,
    run_child,
    start_child,
)
from boardfit.edge.process.search_path import safe_search_path

ROOT = Path(__file__).parents[3]
DOOR = "edge/process/child.py"
ROOMS = ("src/boardfit", "edge", "converters", "device_profiles")

# Modules that start processes, and functions of other modules that do.
MODULES = {"subprocess", "gevent.subprocess", "multiprocessing", "pty", "webbrowser",
           "_posixsubprocess", "concurrent.futures.process", "asyncio.subprocess"}  # fmt: skip
FUNCTIONS = {
    "os": {"system", "popen", "fork", "forkpty", "startfile", "posix_spawn", "posix_spawnp"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
    "concurrent.futures": {"ProcessPoolExecutor"},
    "shutil": {"which"},  # looks into the current folder
    "sys": {"executable"},
    "ctypes.util": {"find_library"},  # runs ldconfig and gcc
    "click": {"edit", "launch", "echo_via_pager", "pager"},
    "platform": {"architecture"},  # runs `file`
}
FAMILIES = ("exec", "spawn")  # of os: execv, execvp, spawnlp …
FOREIGN = {"system", "popen", "fork", "vfork", "posix_spawn", "execv", "execve", "execvp"}
# Files that cannot import boardfit.edge.process.child, each with what it does itself.
ALLOWED = {
    # It waits for a copy of itself, in the user's own folder.
    "edge/supervisor.py": {"os.fork"},
    # It computes in a copy of itself, which it asks over a pipe, and runs no other program.
    "edge/process/forked.py": {
        "os.fork",
        "multiprocessing.connection.Pipe",
        "multiprocessing.connection.Connection",
    },
    # Runs on a board before boardfit is installed there. It forks to load the engine once, and
    # writes its own interpreter into the launcher.
    "converters/board/offline/board/install.py": {"os.fork", "sys.executable"},
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def is_door(name: str) -> bool:
    """Whether a dotted name starts a process or tells how to start Python."""
    module, _, attribute = name.rpartition(".")
    if any(f"{name}.".startswith(f"{known}.") for known in MODULES):
        return True
    if module == "os" and attribute.startswith(FAMILIES):
        return True
    return attribute in FUNCTIONS.get(module, set())


def doors(source: str) -> set[str]:
    """What a source file uses that only the door may use."""
    tree, found, names = ast.parse(source), set[str](), dict[str, str]()
    prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= {alias.name} if is_door(alias.name) else set()
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found |= {full} if is_door(full) else set()
                names[alias.asname or alias.name] = full
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & MODULES  # import_module("gevent.subprocess")
            if node not in prose and re.search(r"-m boardfit", node.value):
                found.add("a command line with -m")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, dot, rest = dotted(node).partition(".")
            full = f"{names.get(first, first)}{dot}{rest}"
            found |= {full} if is_door(full) else set()
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            if called.rpartition(".")[2] in ("Popen", "subprocess_exec", "subprocess_shell"):
                found.add(f"{called}()")
            if called.rpartition(".")[2] in FOREIGN and called.partition(".")[0] in (
                "libc", "lib", "library", "?",
            ):  # fmt: skip
                found.add(called)
            if called == "getattr" and len(node.args) > 1:
                of, what = dotted(node.args[0]), node.args[1]
                value = what.value if isinstance(what, ast.Constant) else ""
                full = f"{names.get(of, of)}.{value}"
                found |= {full} if is_door(full) else set()
    return found


def shipped() -> list[Path]:
    return [p for d in ROOMS for p in (ROOT / d).rglob("*.py")]


def test_only_the_door_starts_processes() -> None:
    wrong = []
    for path in shipped():
        name = path.relative_to(ROOT).as_posix()
        found = doors(path.read_text(encoding="utf-8")) - ALLOWED.get(name, set())
        if name != DOOR and found:
            wrong.append(f"{name} uses {', '.join(sorted(found))}: use {DOOR}")
    assert not wrong, wrong


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "from subprocess import run",
        "import subprocess as s",
        "def f():\n    import multiprocessing",
        "from concurrent.futures import ProcessPoolExecutor",
        "import concurrent.futures as c\nc.ProcessPoolExecutor()",
        "import os\nos.system('x')",
        "import os as o\no.execvp('x', [])",
        "from os import posix_spawn",
        "import os\nos.spawnlp(0, 'x')",
        "import os\ngetattr(os, 'popen')('x')",
        "import os\nos.fork()",
        "import asyncio\nasyncio.create_subprocess_exec('x')",
        "async def f(loop):\n    await loop.subprocess_exec(None, 'x')",
        "from multiprocessing.pool import Pool",
        "import multiprocessing.pool",
        "__import__('subprocess').run(['x'])",
        "import importlib\nimportlib.import_module('gevent.subprocess')",
        "import ctypes\nctypes.CDLL(None).system(b'x')",
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.system(b'x')",
        "import ctypes.util\nctypes.util.find_library('c')",
        "from ctypes.util import find_library",
        "import shutil\nshutil.which('x')",
        "import sys\nx = [sys.executable, 'x']",
        "from sys import executable",
        "from boardfit.edge.process.child import Popen\nPopen(['x'])",
        "import click\nclick.launch('x')",
        "import webbrowser",
        "import pty",
        "command = f'{python} -m boardfit slots'",
    ],
)
def test_the_lint_sees(source: str) -> None:
    assert doors(source)


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['x'] = os.path.join('a', 'b')",
        "from boardfit.edge.process.child import Popen, run_child\n"
        "def f(p: Popen[bytes]):\n    run_child(['x'])",
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.prctl(1, 9)",
        "import sys\nsys.exit(0)",
    ],
)
def test_the_lint_lets_pass(source: str) -> None:
    assert not doors(source)


# ---- what passes through the door ---------------------------------------------------------------

SHOW = """
import json, os, sys
print(json.dumps([os.getcwd(), dict(os.environ), sys.path, sys.argv]))
"""
PLANTED_MODULES = (
    "boardfit",
    *("json", "runpy", "sitecustomize", "usercustomize", "psutil", "pip", "venv", "edge"),
    *("os", "encodings", "site", "click", "importlib"),
)


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs and modules, which is the current one and in PATH and PYTHONPATH."""
    monkeypatch.chdir(tmp_path)
    for name in ("sh", "ssh", "nowhere-else"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho planted > {tmp_path}/mark\n")
        (tmp_path / name).chmod(0o755)
    planted = f"open({str(tmp_path / 'mark')!r}, 'w').write('planted')\n"
    for name in PLANTED_MODULES:
        (tmp_path / f"{name}.py").write_text(planted)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    return tmp_path


def test_environment(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "PWD", "STARTUP", "USERBASE", "WARNINGS", "BREAKPOINT"):
        monkeypatch.setenv(f"PYTHON{name}", str(away))
    monkeypatch.setenv("BOARDFIT_TRUSTED_KEYS", "keys.pub")
    monkeypatch.setenv("DOCKER_CONFIG", "../docker")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    done = run_child(["env"], env=child_environment(EXTRA="1", PYTHONPATH="x"))
    got = dict(line.split("=", 1) for line in decode_output(done.stdout).splitlines())
    assert not [name for name in got if name.startswith("PYTHON")]
    assert got["BOARDFIT_TRUSTED_KEYS"] == str(away / "keys.pub")
    assert got["DOCKER_CONFIG"] == str(away.parent / "docker")
    assert (got["SSH_AUTH_SOCK"], got["LC_TIME"], got["EXTRA"]) == ("/run/agent", "C.UTF-8", "1")
    assert all(os.path.isabs(place) for place in got["PATH"].split(":"))


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        (".:/usr/bin:/bin", "/usr/bin:/bin"),
        (":/bin", "/bin"),
        ("/bin:", "/bin"),
        ("/bin::/usr/bin", "/bin:/usr/bin"),
        ("bin:./x:../y:~/z:/bin", "/bin"),
        ("", os.defpath),
        (".", os.defpath),
    ],
)
def test_search_path(path: str, safe: str) -> None:
    assert safe_search_path(path) == safe


def test_programs_of_the_current_folder_are_not_found(away: Path) -> None:
    assert find_program("sh") in ("/bin/sh", "/usr/bin/sh")
    assert find_program("nowhere-else") is None
    assert run_child(["sh", "-c", "pwd; exit 3"]).returncode == 3
    with pytest.raises(FileNotFoundError):
        run_child(["nowhere-else"])
    with pytest.raises(FileNotFoundError):
        run_child([""])
    assert not (away / "mark").exists()


def test_working_folder(away: Path) -> None:
    assert run_child(["pwd"]).stdout == b"/\n"
    assert run_child(["pwd"], cwd="sub/..").stdout == f"{away}\n".encode()


def test_input_and_time_limit() -> None:
    assert run_child(["cat"], input=b"x").stdout == b"x"
    assert run_child(["cat"]).stdout == b""  # not the terminal
    with pytest.raises(TimeoutExpired):
        run_child(["sleep", "10"], timeout_s=0.1)


@pytest.mark.parametrize("flags", [(), ("-s", "-B", "-u")])
def test_python_children_see_their_installation_only(away: Path, flags: tuple[str, ...]) -> None:
    (away / "ours").mkdir()
    (away / "ours/shown.py").write_text(SHOW)
    argv = python_argv("shown", "a b", "-c", flags=flags, folder=away / "ours")
    for cwd in ("/", away):
        done = run_child(argv, cwd=cwd)
        assert done.returncode == 0, done.stderr
        folder, environment, path, arguments = json.loads(done.stdout)
        assert folder == str(cwd) and path[0] == str(away / "ours")
        assert arguments == [str(away / "ours/shown.py"), "a b", "-c"]
        assert str(away) not in path and "" not in path
        assert not [name for name in environment if name.startswith("PYTHON")]
    assert not (away / "mark").exists()


def test_our_modules_run_from_anywhere(away: Path) -> None:
    done = run_child(python_argv("boardfit", "--version"), cwd=away)
    assert done.returncode == 0 and done.stdout.startswith(b"edge, version"), done.stderr
    for module in ("pip", "venv"):
        assert run_child(python_argv(module, "--help"), cwd=away).returncode == 0
    assert run_child(python_argv("boardfit.nothing")).returncode == 1
    assert not (away / "mark").exists()


def test_another_python_is_given_nothing_of_ours() -> None:
    argv = python_argv("site", python=Path(sys.executable))
    assert str(ROOT) not in argv
    assert run_child(argv).returncode == 0


def test_a_started_child_can_be_spoken_to() -> None:
    with start_child(["cat"], stdin=-1) as process:
        out, _ = process.communicate(b"hello")
    assert out == b"hello"
