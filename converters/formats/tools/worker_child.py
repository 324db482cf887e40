"""Child process of `worker.py`, inside a pinned environment. Standard library only."""

import importlib
import json
import os
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from boardfit.edge.errors import EdgeError, UnsafeInputError


class Report:
    """How a worker speaks to the user."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """One line for a person: what is being done now."""
        self._write({"say": text})

    def progress(self, done: int, total: int) -> None:
        """How far the step is; `done` grows to `total`."""
        self._write({"progress": [done, total]})

    def _write(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._pipe.write(json.dumps(message) + "\n")
            self._pipe.flush()


def main() -> None:
    pipe = os.fdopen(int(os.environ.pop("BOARDFIT_WORKER_FD")), "w", encoding="utf-8")
    report = Report(pipe)
    job = json.loads(sys.stdin.buffer.readline())
    _die_with_parent()
    _forbid_network()
    _limit_memory(job["memory_limit"])
    code = 0
    try:
        result = importlib.import_module(sys.argv[1]).run(job["request"], report)
        report._write({"result": result})
    except BaseException as error:
        traceback.print_exc()
        next_step = error.next_step if isinstance(error, EdgeError) else None
        kind = type(error).__name__
        report._write({"error": {"type": kind, "message": str(error), "next_step": next_step}})
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of half a dozen C++ libraries have crashed here after the work was done.
    os._exit(code)


def _die_with_parent() -> None:
    """End when stdin closes. It closes when the parent ends, in any way."""

    def wait() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    if sys.platform == "linux":
        # A compiler may hold the interpreter for minutes; the kernel needs no interpreter.
        import ctypes
        import signal

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() == 1:
            time.sleep(0.1)  # the parent may be init itself, in a container; stdin shows it


def _forbid_network() -> None:
    """Block the network for every library of this process, regardless of its own settings."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") and not (
            event != "socket.getaddrinfo" and isinstance(arguments[1], (str, bytes))
        ):
            raise UnsafeInputError(f"a conversion tried to use the network ({event})")

    sys.addaudithook(hook)


def _limit_memory(limit: int | None) -> None:
    if limit and sys.platform == "linux":
        import resource

        # Private writable memory; mapped checkpoints do not count.
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main()
