"""The machine and what disturbed a run: read before and after, compared by a pure function."""

import contextlib
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import psutil

from boardfit.edge.bench.heat import find_meter, read_heat
from boardfit.edge.bench.metrics import drift
from boardfit.edge.probe.cpu import find_field
from boardfit.edge.probe.identity import match_boards, read_board_names
from boardfit.edge.probe.memory import read_limits
from boardfit.edge.probe.system import LocalSystem, first_text
from boardfit.edge.types import HeatSample

# A share of one core's time that others may take before a run counts as disturbed.
MAX_OTHERS_SHARE = 0.10
MAX_STEAL_SHARE = 0.02
MAX_DRIFT = 0.05
# vcgencmd get_throttled: bits 0-3 are now, 16-19 since boot (Raspberry Pi documentation).
THROTTLE_NOW = 0xF
_CPU_NAMES = ("model name", "Model")
_GOVERNOR = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


class Conditions(NamedTuple):
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
    swap_out: int | None = None
    with contextlib.suppress(OSError, RuntimeError):
        swap_out = psutil.swap_memory().sout
    own_s, steal_s = own.user + own.system, getattr(times, "steal", 0.0)
    return Conditions(total, total - idle, own_s, steal_s, swap_out)


def disturbances(
    before: Conditions, after: Conditions, heat: Sequence[HeatSample], samples: Sequence[float]
) -> list[str]:
    """Why a figure may not be the machine's best. `samples` are rates in the order taken."""
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
    return flags + find_drift(samples)


def find_drift(samples: Sequence[float]) -> list[str]:
    """A flag where rates changed over a run."""
    change = drift(samples)
    is_large = change is not None and abs(change) > MAX_DRIFT
    return [f"drift: the second half ran {change:+.0%}"] if is_large else []


def machine_state() -> dict[str, Any]:
    """What changes between the start and the end of a bench; None when it cannot be determined."""
    heat = read_heat()
    return {
        "governor": first_text(LocalSystem(), [_GOVERNOR]),
        "clock_hz": heat.clock_hz,
        "temp_c": heat.temp_c,
        "throttled": heat.throttled,
        "load_1min": psutil.getloadavg()[0],
        "available_bytes": psutil.virtual_memory().available,
    }


def machine_facts() -> dict[str, Any]:
    """What a reader needs to know of the machine; None when it cannot be determined."""
    system, ram_bytes, meter = LocalSystem(), psutil.virtual_memory().total, find_meter()
    text = system.read("/proc/cpuinfo")
    limits = [limit.limit_bytes for limit in read_limits(system)]
    profile = next(iter(match_boards(read_board_names(system), ram_bytes)), None)
    return {
        "model": first_text(system, ["/proc/device-tree/model"]),
        "profile": profile.id if profile else None,
        "cpu": (platform.processor() or None) if text is None else find_field(text, *_CPU_NAMES),
        "n_cores": psutil.cpu_count(logical=False),
        "n_threads": psutil.cpu_count(),
        "ram_bytes": ram_bytes,
        "memory_limit_bytes": min(limits, default=None),
        "arch": platform.machine(),
        "os": os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "governor": first_text(system, [_GOVERNOR]),
        "power_sensor": meter.kind if meter else None,
    }


def os_name() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.platform())
    return platform.platform()
