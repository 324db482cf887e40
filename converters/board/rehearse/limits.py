"""A memory limit equal to what the board leaves free, and what was used below it.

Three ways, the first that works: a cgroup of version 1 or 2 made directly (root), or a scope that
systemd makes for an ordinary user. Without any of them nothing is enforced, and the sampled peak is
compared with the limit afterwards.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boardfit.edge.process.child import SubprocessError, find_program, run_child

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class EnforcedLimit:
    """A limit in force. `folder` is its cgroup (None: not enforced, or systemd's); `wrap` goes
    before a command so that it runs inside.
    """

    how: str
    folder: Path | None
    wrap: tuple[str, ...]

    @property
    def is_enforced(self) -> bool:
        return self.how != "none"

    def oom_kills(self) -> int:
        """Processes that the kernel killed for exceeding the limit, as far as it reports them."""
        for name in ("memory.events", "memory.oom_control"):
            for line in _lines(self.folder, name):
                key, _, value = line.partition(" ")
                if key == "oom_kill" and value.strip().isdigit():
                    return int(value)
        return 0

    def peak_bytes(self) -> int | None:
        """The most that was charged to the cgroup, page cache included."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            for line in _lines(self.folder, name):
                return int(line)
        return None


@contextlib.contextmanager
def memory_limit(n_bytes: int) -> Iterator[EnforcedLimit]:
    """A limit of `n_bytes` on what is started through its `wrap`; removed on leaving."""
    version, folder = make_cgroup(n_bytes)
    if folder is None:
        yield systemd_scope(n_bytes) or EnforcedLimit("none", None, ())
        return
    tasks = folder / ("tasks" if version == 1 else "cgroup.procs")
    wrap = ("/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(tasks))
    try:
        yield EnforcedLimit(f"cgroup v{version}", folder, wrap)
    finally:
        remove_cgroup(folder)


def make_cgroup(n_bytes: int) -> tuple[int, Path | None]:
    """(version, folder) of a new cgroup with the limit set, swap included; folder None if the
    kernel or our rights do not allow it.
    """
    name = f"boardfit-{os.getpid()}-{time.monotonic_ns()}"
    attempts = (
        (1, CGROUPS / "memory" / name, (("memory.limit_in_bytes", n_bytes),),
         (("memory.memsw.limit_in_bytes", n_bytes), ("memory.swappiness", 0))),
        (2, CGROUPS / name, (("memory.max", n_bytes),),
         (("memory.swap.max", 0), ("memory.oom.group", 1))),
    )  # fmt: skip
    for version, folder, needed, wished in attempts:
        marker = folder.parent / ("memory.limit_in_bytes" if version == 1 else "cgroup.controllers")
        if not marker.exists():
            continue
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            for file, value in needed:
                (folder / file).write_text(str(value))
        except OSError:
            remove_cgroup(folder)
            continue
        for file, value in wished:  # kernels without swap accounting lack these
            with contextlib.suppress(OSError):
                (folder / file).write_text(str(value))
        return version, folder
    return 0, None


def remove_cgroup(folder: Path) -> None:
    """Remove a cgroup after its last process ended."""
    for _ in range(50):
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)


def systemd_scope(n_bytes: int) -> EnforcedLimit | None:
    """A user's own scope; None where systemd does not run or may not limit memory."""
    if not find_program("systemd-run"):
        return None
    wrap = (
        "systemd-run", "--user", "--scope", "--quiet", "--collect",
        "-p", f"MemoryMax={n_bytes}", "-p", "MemorySwapMax=0", "--",
    )  # fmt: skip
    try:
        works = run_child([*wrap, "true"], timeout_s=10).returncode == 0
    except (OSError, SubprocessError):
        return None
    return EnforcedLimit("systemd scope", None, wrap) if works else None


def _lines(folder: Path | None, name: str) -> list[str]:
    if folder is None:
        return []
    try:
        return (folder / name).read_text().splitlines()
    except OSError:
        return []
