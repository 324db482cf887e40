"""A memory limit equal to what the board leaves free, and the peak of the emulated programs below
it, separated from the emulator's.

Three ways to limit, the first that works: a cgroup of version 1 or 2 made directly (root), or a
scope that systemd makes for an ordinary user. Without any of them nothing is enforced, and the
sampled peak is compared with the limit afterwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from boardfit.edge.probe.emulation import GuestMemory, parse_smaps
from boardfit.edge.process.child import SubprocessError, find_program, run_child

CGROUPS = Path("/sys/fs/cgroup")
_INTERVAL_S = 0.05


@dataclass(frozen=True)
class EnforcedLimit:
    """A limit: `folder` is its cgroup if it has one; `wrap` makes a command run inside."""

    how: str
    folder: Path | None
    wrap: tuple[str, ...]

    def oom_kills(self) -> int:
        """Processes that the kernel killed for exceeding the limit, as far as it reports them."""
        if self.folder is None:
            return 0
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                text = (self.folder / name).read_text()
                if match := re.search(r"^oom_kill (\d+)", text, re.MULTILINE):
                    return int(match[1])
        return 0


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
    """(version, folder) of a new cgroup with the limit; no folder where it is not allowed."""
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


class PeakWatcher:
    """Samples the emulated descendants of a process until stopped; keeps the highest of each sum.
    with PeakWatcher(process.pid) as watcher: process.wait()
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = GuestMemory(0, 0, 0)

    def __enter__(self) -> PeakWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            samples = [astuple(sample) for sample in read_emulated(self._pid)]
            now = map(sum, zip(*samples, strict=True)) if samples else (0, 0, 0)
            self.peak = GuestMemory(*map(max, astuple(self.peak), now))


def read_emulated(root_pid: int) -> list[GuestMemory]:
    """One sample per qemu-user process at or below `root_pid`."""
    import psutil

    try:
        root = psutil.Process(root_pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
    samples = []
    for process in processes:
        folder = Path("/proc") / str(process.pid)
        try:
            # Under proot the executable is a copy with another name, under binfmt the command line
            # is the guest's: one of the two names the emulator.
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if "qemu" in (folder / "exe").readlink().name or b"qemu-aarch64" in words[0]:
                samples.append(parse_smaps((folder / "smaps").read_text()))
        except OSError:
            continue  # it has just ended
    return samples
