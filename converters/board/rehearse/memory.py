"""The peak memory of emulated programs, separated from the emulator's, while they run."""

from __future__ import annotations

import threading
from pathlib import Path

from boardfit.edge.probe.emulation import GuestMemory, parse_smaps

_INTERVAL_S = 0.05


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
            now = total(read_emulated(self._pid))
            old = self.peak
            self.peak = GuestMemory(
                max(old.guest, now.guest),
                max(old.guest_anonymous, now.guest_anonymous),
                max(old.emulator, now.emulator),
            )


def total(samples: list[GuestMemory]) -> GuestMemory:
    return GuestMemory(
        sum(s.guest for s in samples),
        sum(s.guest_anonymous for s in samples),
        sum(s.emulator for s in samples),
    )


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
