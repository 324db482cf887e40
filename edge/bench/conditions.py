"""The machine and what disturbed a run: read before and after, compared by a pure function."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from boardfit.edge.bench.heat import read_heat
from boardfit.edge.bench.metrics import drift
from boardfit.edge.bench.power import find_meter
from boardfit.edge.probe.identity import match_boards, read_board_names
from boardfit.edge.probe.memory import read_limits
from boardfit.edge.probe.system import LocalSystem
from boardfit.edge.types import HeatSample

# A share of one core's time that others may take before a run counts as disturbed.
MAX_OTHERS_SHARE = 0.10
MAX_STEAL_SHARE = 0.02
MAX_DRIFT = 0.05
# vcgencmd get_throttled: bits 0-3 are now, 16-19 since boot (Raspberry Pi documentation).
THROTTLE_NOW = 0xF


@dataclass(frozen=True)
class Conditions:
    """Counters at one moment: CPU seconds by everybody, by us, stolen; bytes swapped out."""

    wall_s: float
    busy_s: float
    own_s: float
    steal_s: float
    swap_out_bytes: int | None


def read_conditions() -> Conditions:
    """CPU and swap counters now (psutil; steal is 0 where the kernel does not count it)."""
    times = psutil.cpu_times()
    own = psutil.Process().cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    total = sum(times[: 8 if hasattr(times, "steal") else len(times)])
    try:
        swap_out: int | None = psutil.swap_memory().sout
    except (OSError, RuntimeError):
        swap_out = None
    return Conditions(
        total, total - idle, own.user + own.system, getattr(times, "steal", 0.0), swap_out
    )


def disturbances(
    before: Conditions,
    after: Conditions,
    heat: Sequence[HeatSample],
    samples: Sequence[float],
) -> list[str]:
    """Reasons in plain words why a figure may not be the machine's best; empty when there are none.

    `samples` are the repetitions' rates in the order in which they were taken.
    """
    flags = []
    n_cores = psutil.cpu_count() or 1
    elapsed = (after.wall_s - before.wall_s) / n_cores
    if elapsed > 0:
        others = (after.busy_s - before.busy_s - (after.own_s - before.own_s)) / elapsed
        if others > MAX_OTHERS_SHARE:
            flags.append(f"shared CPU: others used {others:.2f} cores")
        steal = (after.steal_s - before.steal_s) / elapsed
        if steal > MAX_STEAL_SHARE:
            flags.append(f"steal: the hypervisor took {steal:.2f} cores")
    if after.swap_out_bytes is not None and before.swap_out_bytes is not None:
        swapped = after.swap_out_bytes - before.swap_out_bytes
        if swapped > 0:
            flags.append(f"swapped out {swapped} bytes")
    if any(h.throttled is not None and h.throttled & THROTTLE_NOW for h in heat):
        flags.append("throttled: the firmware lowered clocks or saw under-voltage")
    change = drift(samples)
    if change is not None and abs(change) > MAX_DRIFT:
        flags.append(f"drift: the second half ran {change:+.0%}")
    return flags


def machine_state() -> dict[str, Any]:
    """What changes between the start and the end of a bench; None when it cannot be determined."""
    heat = read_heat()
    load = psutil.getloadavg()[0]
    return {
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_hz": heat.clock_hz,
        "temp_c": heat.temp_c,
        "throttled": heat.throttled,
        "load_1min": load,
        "available_bytes": psutil.virtual_memory().available,
    }


def machine_facts() -> dict[str, Any]:
    """What a reader needs to know of the machine; None when it cannot be determined."""
    governor = _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    model, ram_bytes = board_model(), psutil.virtual_memory().total
    limits = [limit.limit_bytes for limit in read_limits(LocalSystem())]
    profile = next(iter(match_boards(read_board_names(LocalSystem()), ram_bytes)), None)
    meter = find_meter()
    return {
        "model": model,
        "profile": profile.id if profile else None,
        "cpu": cpu_name(),
        "n_cores": psutil.cpu_count(logical=False),
        "n_threads": psutil.cpu_count(),
        "ram_bytes": ram_bytes,
        "memory_limit_bytes": min(limits, default=None),
        "arch": platform.machine(),
        "os": os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "governor": governor,
        "power_sensor": meter.kind if meter else None,
    }


def board_model() -> str | None:
    """The name on the device tree (`Raspberry Pi 5 Model B Rev 1.0`), or None."""
    text = _first_line("/proc/device-tree/model")
    return text.rstrip("\0") if text else None


def cpu_name() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or None
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.platform())
    except OSError:
        return platform.platform()


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().splitlines()[0].strip()
    except (OSError, UnicodeDecodeError, IndexError):
        return None
