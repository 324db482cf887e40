"""What a probe measures on the machine it runs on, within a time budget: bandwidth by thread count,
the engine's 4-bit kernels, storage. The findings turn a `DeviceProfile` into a measured one.

On a board behind ssh this runs from a zip file (`boardfit.edge.probe.remote_measure`), with nothing
but Python 3.10, and prints JSON lines:

    python3 probe.zip MARK '{"clusters": […], "ram_bytes": …, "free_bytes": …, "quick": false}'
"""

import ctypes
import json
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from boardfit.device_profiles.cost.speed import default_threads
from boardfit.device_profiles.profile import BoardMemory, CpuCluster, DeviceProfile, KernelSpeed
from boardfit.edge.probe.ggml import library_folder
from boardfit.edge.probe.storage import measure_read_speed
from boardfit.edge.probe.system import LocalSystem, System, read_lines
from boardfit.edge.process.child import DEVNULL, python_argv, start_child
from boardfit.edge.terminal.progress import Progress

_CACHE_SIZE = re.compile(r"^(\d{1,9})([KM])$")
_LEAST_WEIGHTS, _MOST_WEIGHTS = 48 << 20, 512 << 20
_PRODUCTS = 10  # kernels timed at the most: five types, as stored and repacked
_BUSY = 0.5  # runnable processes per core
_LIMIT_S = 28.0  # of the 30 s that a probe may take


@dataclass
class Measurements:
    """Findings; what could not be measured is None or empty, and `notes` gives the reason. Rates
    are in bytes per second. `method` is `engine` (its 4-bit products) or `copy` (of a block).
    """

    bandwidth_by_threads: dict[int, float] = field(default_factory=dict)
    kernels: list[KernelSpeed] = field(default_factory=list)
    storage_read: float | None = None
    engine_isa: frozenset[str] | None = None
    method: str | None = None
    notes: list[str] = field(default_factory=list)


def measure_machine(
    profile: DeviceProfile,
    *,
    quick: bool = False,
    progress: Progress | None = None,
    engine_folder: Path | None = None,
) -> Measurements:
    """Measure this machine, in less than 30 s (`quick`: some 5 s), with its `profile`'s threads."""
    found = Measurements()
    counts = thread_counts(default_threads(profile), quick=quick)
    folder = engine_folder or library_folder()
    steps = len(counts) + _PRODUCTS + 2
    done = 0

    def step(n: int = 1) -> None:
        nonlocal done
        done = min(done + n, steps)
        if progress:
            progress(done, steps)

    found.notes += busy_note(profile.n_cores)
    if folder is None:
        found.notes.append("no engine is installed: memory was timed by copying, kernels were not")
    else:
        # Enough to defeat the caches, little enough to leave the board its memory.
        wanted = max(_LEAST_WEIGHTS, 4 * (last_level_cache(LocalSystem()) or 0))
        most = min(_MOST_WEIGHTS // 4 if quick else _MOST_WEIGHTS, profile.free_ram_bytes // 4)
        weight_bytes = max(1 << 20, min(wanted, most))
        budget_s = 0.15 if quick else min(0.6, 12 / (len(counts) + _PRODUCTS))
        threads = ",".join(map(str, counts))
        command = [str(folder.absolute()), threads, str(weight_bytes), f"{budget_s:.3f}"]
        _run_kernels(command, found, step)
    if not found.bandwidth_by_threads:
        block = max(4 << 20, min(128 << 20, profile.free_ram_bytes // 8))
        seconds = 0.1 if quick else 0.4
        for n_threads in counts:
            rate = measure_copy_bandwidth(n_threads, block_bytes=block, seconds=seconds)
            found.bandwidth_by_threads[n_threads] = rate
            step()
        found.method = "copy"
    found.storage_read = measure_read_speed(seconds=0.5 if quick else 2.0)
    if found.storage_read is None:
        found.notes.append("storage was not timed: no large file that could be read past the cache")
    step(steps)
    return found


def busy_note(n_cores: int) -> list[str]:
    """A warning when others keep the cores busy: what is timed then is less than the board can."""
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):  # no such thing on this system
        return []
    busy = f"the machine was busy (load {load:.1f} on {n_cores} cores): figures are too low; probe"
    return [f"{busy} again when it is idle"] if load >= _BUSY * n_cores else []


def measured_profile(profile: DeviceProfile, found: Measurements) -> DeviceProfile:
    """The profile with what was measured in place of what was published or unknown."""
    if rates := found.bandwidth_by_threads:
        best, theoretical = max(rates.values()), profile.memory.bandwidth_theoretical
        memory = replace(
            profile.memory,
            bandwidth_sustained=best,
            bandwidth_by_threads=tuple(sorted(rates.items())),
            # Caches can beat a data sheet; a file with such figures would be refused.
            bandwidth_theoretical=theoretical if best <= (theoretical or 0) else None,
        )
        profile = replace(profile, memory=memory, basis="measured here")
    if found.storage_read is not None:
        profile = replace(profile, storage=replace(profile.storage, read=found.storage_read))
    return replace(profile, kernel_speeds=tuple(found.kernels))


def thread_counts(n_threads: int, *, quick: bool) -> list[int]:
    """Counts worth timing up to `n_threads`: every one up to 4, then the even ones."""
    if quick:
        return sorted({1, max(1, n_threads // 2), n_threads})
    return sorted({*range(1, min(n_threads, 4) + 1), *range(6, min(n_threads, 16), 2), n_threads})


def last_level_cache(system: System) -> int | None:
    """Bytes of the largest cache that the kernel lists; None where it lists none."""
    sizes = []
    for path in system.glob("/sys/devices/system/cpu/cpu*/cache/index*/size"):
        match = _CACHE_SIZE.match((system.read(path) or "").strip())
        if match:
            sizes.append(int(match[1]) << (10 if match[2] == "K" else 20))
    return max(sizes, default=None)


def measure_copy_bandwidth(
    n_threads: int = 1, *, block_bytes: int = 32 * 1024**2, seconds: float = 0.05
) -> float:
    """Bytes per second read and written by `n_threads` copying at once, the best of several passes.
    ctypes releases the interpreter lock during `memmove`. Caches as large as the block make it
    optimistic.
    """
    part = max(block_bytes // n_threads, 1)
    source = ctypes.create_string_buffer(part * n_threads)
    target = ctypes.create_string_buffer(part * n_threads)
    begin, end = ctypes.addressof(source), ctypes.addressof(target)

    def copy(index: int) -> None:
        ctypes.memmove(end + index * part, begin + index * part, part)

    def one_pass() -> float:
        threads = [threading.Thread(target=copy, args=(i,)) for i in range(1, n_threads)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        copy(0)
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    one_pass()  # touches every page, so that faults are not timed
    best, deadline = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        best = min(best, one_pass())
    return 2 * part * n_threads / max(best, 1e-9)


def _run_kernels(command: Sequence[str], found: Measurements, step: Callable[[], None]) -> None:
    """Time the engine in a process of its own, taking its findings as they come."""
    argv = python_argv("boardfit.edge.probe.kernels", *command)
    deadline = time.monotonic() + _LIMIT_S
    with start_child(argv, stderr=DEVNULL) as process:
        for line in read_lines(process, lambda: deadline - time.monotonic()):
            _keep(json.loads(line), found)
            step()
        if time.monotonic() >= deadline:
            process.kill()
            what = f"timing the engine's kernels took more than {_LIMIT_S:.0f} s"
            found.notes.append(f"{what}; cut off")
        code = process.wait()
    if code == -signal.SIGILL:
        found.notes.append(
            "the installed engine dies with an illegal instruction: it was built for another CPU"
        )
    elif code not in (0, -signal.SIGKILL):
        found.notes.append(f"the engine's kernels could not be timed (exit {code})")


def _keep(finding: dict[str, object], found: Measurements) -> None:
    match finding:
        case {"threads": int(threads), "bytes_per_s": float(rate)}:
            found.bandwidth_by_threads[threads] = rate
            found.method = "engine"
        case {
            "type": str(kind),
            "repacked": bool(packed),
            "threads": int(n),
            "macs_per_s": float(r),
        }:
            found.kernels.append(KernelSpeed(kind, packed, n, r))
        case {"isa": list(flags)}:
            found.engine_isa = frozenset(map(str, flags))


# ---- on a board behind ssh -----------------------------------------------------------------------


def build_profile(asked: Mapping[str, Any]) -> DeviceProfile:
    """The little of a profile that measuring needs."""
    clusters = tuple(CpuCluster(**{**c, "isa": frozenset(c["isa"])}) for c in asked["clusters"])
    ram = asked["ram_bytes"]
    memory = BoardMemory(ram, max(0, ram - asked["free_bytes"]))
    return DeviceProfile("here", "this board", memory, clusters)


def findings_record(found: Measurements) -> dict[str, Any]:
    """Findings as a JSON-able object."""
    return {
        **vars(found),
        "python": platform.python_version(),
        "bandwidth_by_threads": sorted(found.bandwidth_by_threads.items()),
        "kernels": [[k.ggml_type, k.repacked, k.threads, k.macs_per_s] for k in found.kernels],
        "engine_isa": None if found.engine_isa is None else sorted(found.engine_isa),
    }


def main(argv: Sequence[str]) -> None:
    """`MARK JSON` → lines `MARK progress DONE STEPS`, then `MARK found JSON`."""
    mark, text = argv
    asked = json.loads(text)

    def progress(done: int, steps: int) -> None:
        print(mark, "progress", done, steps, flush=True)

    found = measure_machine(build_profile(asked), quick=asked["quick"], progress=progress)
    print(mark, "found", json.dumps(findings_record(found)), flush=True)
