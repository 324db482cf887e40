"""Run one job in another Python: the environments of `environments.py` have no boardfit in them.

The child runs `worker_child MODULE` from a folder that shows it our package and nothing else of
this environment. So no version of ours shadows a pinned one. The request is one JSON line on its
stdin, which stays open: it closes when we die, and the child goes too. Answers are JSON lines on a
pipe of their own, because libraries print to stdout:

    {"say": text}   {"progress": [done, total]}
    {"result": {…}} {"error": {"type": name, "message": text, "next_step": text or null}}
"""

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boardfit.edge.errors
from boardfit.edge.errors import DoesNotFitError, EdgeError, EngineError, EngineMissingError
from boardfit.edge.process.cage import SCRATCH, cage_command
from boardfit.edge.process.child import (
    OUR_FOLDER,
    PIPE,
    child_environment,
    python_argv,
    start_child,
)
from boardfit.edge.process.last_words import explain_death
from boardfit.edge.terminal.progress import Progress, Say
from boardfit.edge.units import format_bytes, printable

_PACKAGES = ("boardfit",)
_ROOMS = ("edge", "converters", "device_profiles")
_CHILD = "boardfit.converters.formats.tools.worker_child"
_FLAGS = ("-s", "-B", "-u")  # no packages of the user's, no bytecode, no buffer
_TAIL_LINES = 12
_SIGKILL = -9
# All that a caged worker has of our environment.
_KEPT = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Cage:
    """What a caged worker may read beside its Python, and the only folder that it may write."""

    shown: tuple[Path, ...]
    writable: Path


def run_worker(
    python: Path,
    module: str,
    request: Mapping[str, Any],
    *,
    progress: Progress | None = None,
    say: Say | None = None,
    memory_limit: int | None = None,
    threads: int | None = None,
    variables: Mapping[str, str] | None = None,
    cage: Cage | None = None,
) -> dict[str, Any]:
    """Call `module.run(request, report)` in `python` and return what it returns.

    `module` is importable with the standard library and what `python` has. Paths in `request` are
    absolute. The child has no network. `memory_limit` bounds its private memory in bytes (Linux);
    `variables` are added to its environment. `cage` puts it into a cage where bubblewrap works;
    elsewhere `say` gets the reason.

    Raises the boardfit error that the child raised, DoesNotFitError when it ran out of memory,
    EngineError with the last lines that it printed when it died otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="boardfit-worker-") as folder:
        for package in _PACKAGES:
            (Path(folder) / package).symlink_to(
                (_root() / package).resolve(), target_is_directory=True
            )
        say = say or (lambda text: None)
        command = python_argv(_CHILD, module, python=python, flags=_FLAGS, folder=folder)
        environment = {**_environment(threads), **(variables or {})}
        if cage is not None:
            command, environment = _put_into(cage, command, environment, python, folder, say)
        with (Path(folder) / "output.log").open("w+b") as log:
            answer, code = _talk(
                command,
                json.dumps({"request": dict(request), "memory_limit": memory_limit}),
                folder,
                environment,
                log,
                progress or (lambda done, total: None),
                say,
            )
            if "result" in answer and code == 0:
                return dict(answer["result"])
            raise _failure(answer, code, _read_tail(log), module, memory_limit)


def _root() -> Path:
    """The folder that our package is in."""
    return Path(OUR_FOLDER)


def _put_into(
    cage: Cage, command: list[str], environment: dict[str, str], python: Path, folder: str, say: Say
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment in a cage; as they are where there is none."""
    ours = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    kept = {name: value for name, value in environment.items() if name in _KEPT}
    inside = {**kept, **ours, "HOME": SCRATCH, "TMPDIR": SCRATCH}
    packages = [(_root() / name).resolve() for name in _PACKAGES]
    shown = (
        *cage.shown,
        Path(folder),
        *packages,
        # In a checkout the folders of the package are links.
        *(Path(os.path.realpath(packages[0] / name)) for name in _ROOMS),
        python.parent.parent,
        Path(os.path.realpath(python)).parent.parent,
    )
    try:
        caged = cage_command(command, shown, Path(folder), inside, writable=cage.writable)
    except EngineMissingError as error:
        say(f"the conversion runs without a cage: {str(error).partition(': ')[2]}")
        return command, environment
    return caged.argv, inside


def _environment(threads: int | None) -> dict[str, str]:
    """No network, no packages of ours or of the user's, no more threads than asked for."""
    variables = child_environment() | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Freed memory goes back at once: a peak is then what is alive, not what once was.
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
        "MALLOC_MMAP_THRESHOLD_": "1048576",
    }
    if threads:
        variables |= dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
        )
    return variables


def _talk(
    command: list[str],
    request: str,
    folder: str,
    variables: Mapping[str, str],
    log: Any,
    progress: Progress,
    say: Say,
) -> tuple[dict[str, Any], int]:
    """Start the child and listen until it closes the pipe; the last answer and its exit code."""
    reading, writing = os.pipe()
    try:
        child = start_child(
            command,
            stdin=PIPE,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**variables, "BOARDFIT_WORKER_FD": str(writing)},
            pass_fds=(writing,),
        )
    except OSError as error:
        os.close(reading)
        raise EngineError(f"cannot start {command[0]}: {error}") from None
    finally:
        os.close(writing)
    answer: dict[str, Any] = {}
    try:
        assert child.stdin
        # In a thread: a child that dies at once, or does not read, must not stop us here.
        threading.Thread(target=_send, args=(child.stdin, request), daemon=True).start()
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                message = json.loads(line)
                if "say" in message:
                    say(message["say"])
                elif "progress" in message:
                    progress(*message["progress"])
                else:
                    answer = message
        return answer, child.wait()
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def _send(stdin: Any, request: str) -> None:
    try:
        stdin.write(request.encode() + b"\n")
        stdin.flush()  # and kept open: its end is how the child learns of ours
    except OSError:
        pass


def _failure(
    answer: Mapping[str, Any], code: int, tail: str, module: str, memory_limit: int | None
) -> EdgeError:
    if error := answer.get("error"):
        kind = getattr(boardfit.edge.errors, str(error["type"]), None)
        if isinstance(kind, type) and issubclass(kind, EdgeError):
            return kind(str(error["message"]), next_step=error.get("next_step"))
        if error["type"] == "MemoryError" or "bad_alloc" in str(error["message"]):
            return _out_of_memory(memory_limit)
        return EngineError(f"{error['type']}: {printable(str(error['message']), 2000)}\n{tail}")
    if code == _SIGKILL or "bad_alloc" in tail or "MemoryError" in tail:
        return _out_of_memory(memory_limit)
    ended = f"{module} ended with code {code} and no result"
    if death := explain_death(ended, code):
        return EngineError(f"{death}; its last lines:\n{tail}", next_step=death.next_step)
    return EngineError(f"{ended}; its last lines:\n{tail}")


def _out_of_memory(memory_limit: int | None) -> DoesNotFitError:
    limit = f" (limit {format_bytes(memory_limit)})" if memory_limit else ""
    return DoesNotFitError(
        f"the conversion ran out of memory{limit} and was ended",
        next_step="close other programs, or convert on a machine with more memory",
    )


def _read_tail(log: Any) -> str:
    log.flush()
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 8192))
    lines = log.read().decode("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join("  " + printable(line) for line in lines)
