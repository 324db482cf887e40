"""Start child processes. No other file of edge may start one (tests/edge/process/test_child.py).

A child never runs or reads what happens to lie in the folder that the user works in: its folder is
fixed, its program is looked up on a PATH without relative entries, PYTHON* of our environment never
reaches it, and a Python child imports from its own installation and one folder that is named. So
paths in arguments must be absolute; those in known variables are made absolute here.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import (
    DEVNULL,
    PIPE,
    STDOUT,
    CompletedProcess,
    Popen,
    SubprocessError,
    TimeoutExpired,
)
from typing import IO, Any

from boardfit.edge.process.search_path import safe_search_path

__all__ = ["DEVNULL", "PIPE", "STDOUT", "CompletedProcess", "Popen", "SubprocessError",
           "TimeoutExpired", "child_environment", "decode_output", "find_program", "python_argv",
           "run_child", "start_child"]  # fmt: skip

#: What `boardfit` lies in: a folder, or the archive that a probe sends to a board. In a checkout it
#: is src, whose links must not be followed here.
OUR_FOLDER = os.path.abspath(f"{__file__}/../../../..")

# Variables whose value is a path, which a caller may have given relative to its own folder.
_PATH_VARIABLES = frozenset(
    ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "BOARDFIT_CACHE", "BOARDFIT_TRUSTED_KEYS",
     "HF_HOME", "HF_HUB_CACHE", "NETRC", "PIP_CACHE_DIR", "PIP_CERT", "PIP_CONFIG_FILE",
     "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSH_AUTH_SOCK", "SSL_CERT_DIR", "SSL_CERT_FILE",
     "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")
)  # fmt: skip

# Only built-in modules may be imported before the path is cleaned. `-P` does this from 3.11 on;
# `-I` would hide what `pip install --user` has installed.
_START = (
    "import sys; sys.path[:] = [p for p in sys.path if p[:1] == '/']; folder = sys.argv.pop(1); "
    "folder and folder not in sys.path and sys.path.insert(0, folder); del sys.argv[0]; "
    "import runpy; runpy.run_module(sys.argv[0], None, '__main__', True)"
)


def run_child(
    argv: Sequence[str],
    *,
    input: bytes | None = None,
    timeout_s: float | None = None,
    stderr: int | IO[Any] = PIPE,
    cwd: str | Path = "/",
    env: Mapping[str, str] | None = None,
) -> CompletedProcess[bytes]:
    """Run a program to its end; its exit code is the caller's to judge. Raises FileNotFoundError
    without such a program, TimeoutExpired after `timeout_s`.
    """
    fed: dict[str, Any] = {"stdin": DEVNULL} if input is None else {"input": input}
    return subprocess.run(
        timeout=timeout_s, stdout=PIPE, stderr=stderr, check=False,
        **fed, **_prepare(argv, cwd, env),
    )  # fmt: skip


def start_child(
    argv: Sequence[str],
    *,
    stdin: int | IO[Any] = DEVNULL,
    stdout: int | IO[Any] = PIPE,
    stderr: int | IO[Any] = PIPE,
    cwd: str | Path = "/",
    env: Mapping[str, str] | None = None,
    bufsize: int = -1,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
    before_exec: Callable[[], None] | None = None,
) -> Popen[bytes]:
    """Start a program. `before_exec` runs in the child first. Raises FileNotFoundError."""
    return subprocess.Popen(
        stdin=stdin, stdout=stdout, stderr=stderr, bufsize=bufsize, pass_fds=pass_fds,
        start_new_session=start_new_session, preexec_fn=before_exec, **_prepare(argv, cwd, env),
    )  # fmt: skip


def python_argv(
    module: str,
    *arguments: str,
    python: Path | None = None,
    flags: Sequence[str] = (),
    folder: str | Path | None = None,
) -> list[str]:
    """The command that runs a module as `python -m` does, safely from any folder.

    The Python is ours, or another's `python`. The module is found in what that Python has installed
    and before that in `folder` (default: our own package's for our Python, none for another's).
    """
    if folder is None:
        folder = OUR_FOLDER if python is None else ""
    interpreter = sys.executable if python is None else str(python)
    return [interpreter, *flags, "-c", _START, str(folder), module, *arguments]


def child_environment(**extra: str) -> dict[str, str]:
    return _clean({**os.environ, **extra})


def find_program(name: str, *more: str) -> str | None:
    """The absolute path of a program on the safe PATH and in the folders `more`, else None."""
    found = shutil.which(name, path=os.pathsep.join((safe_search_path(), *more)))
    return os.path.abspath(found) if found else None  # a name with a slash is not looked up


def decode_output(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _prepare(argv: Sequence[str], cwd: str | Path, env: Mapping[str, str] | None) -> dict[str, Any]:
    name = argv[0]
    program = os.path.abspath(name) if os.sep in name else find_program(name)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return {
        "args": [program, *argv[1:]],
        "cwd": os.path.abspath(cwd),
        "env": child_environment() if env is None else _clean(env),
    }


def _clean(env: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: _absolute(value) if name in _PATH_VARIABLES else value
        for name, value in env.items()
        # The second is how the launcher of macOS makes Python another one.
        if not name.startswith("PYTHON") and name != "__PYVENV_LAUNCHER__"
    }
    return {**kept, "PATH": safe_search_path(env.get("PATH", ""))}


def _absolute(value: str) -> str:
    """A path as the caller means it. Some programs understand `~` themselves."""
    return os.path.abspath(value) if value and not value.startswith("~") else value
