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

_SAMPLE_S = 0.05


class Report:
    """How a worker speaks to the user, and how much memory it has taken so far."""

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
    anonymous = _AnonymousPeak()
    code = 0
    try:
        result = importlib.import_module(sys.argv[1]).run(job["request"], report)
        peaks = {"peak_rss_bytes": peak_rss_bytes(), "peak_anon_bytes": anonymous.stop()}
        report._write({"result": {**result, **peaks}})
    except BaseException as error:
        traceback.print_exc()
        report._write(
            {
                "error": {
                    "type": type(error).__name__,
                    "message": str(error),
                    "next_step": error.next_step if isinstance(error, EdgeError) else None,
                }
            }
        )
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of half a dozen C++ libraries have crashed here after the work was done.
    os._exit(code)


def peak_rss_bytes() -> int | None:
    """The most that was ever resident, of this program alone.

    Not `getrusage`: its `ru_maxrss` starts from the parent's size across fork and exec.
    """
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int | None:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class _AnonymousPeak:
    """The most private memory that was seen, sampled: the kernel keeps no such mark itself."""

    def __init__(self) -> None:
        self._peak = _status_bytes("RssAnon")
        self._stop = threading.Event()
        if self._peak is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._peak = max(self._peak or 0, _status_bytes("RssAnon") or 0)

    def stop(self) -> int | None:
        self._stop.set()
        return self._peak


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
