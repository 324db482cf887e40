"""This machine as a `DeviceProfile`: parsers applied to what Linux shows, psutil elsewhere."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from device_profiles.catalog import THIS_MACHINE, all_profiles
from device_profiles.cost.speed import default_threads
from device_profiles.profile import CpuCluster, DeviceProfile, Memory, Software
from edge.probe.bandwidth import measure_copy_bandwidth
from edge.probe.cpu import cpuinfo_model, group_clusters, parse_cpuinfo
from edge.probe.memory import parse_meminfo, read_limits, read_text, usable_memory

# How a device tree names boards that have a profile; the RAM decides between a family's sizes.
_BOARD_FAMILIES = (
    ("Raspberry Pi Zero 2 W", "raspberry-pi-zero-2-w"),
    ("Raspberry Pi 4 Model B", "raspberry-pi-4b-"),
    ("Raspberry Pi 400", "raspberry-pi-400"),
    ("Raspberry Pi Compute Module 4", "raspberry-pi-cm4-"),
    ("Raspberry Pi 5 Model B", "raspberry-pi-5-"),
    ("Raspberry Pi 500", "raspberry-pi-500"),
    ("Raspberry Pi Compute Module 5", "raspberry-pi-cm5-"),
    ("Orange Pi 5", "orange-pi-5-"),
    ("Xunlong Orange Pi 5", "orange-pi-5-"),
    ("Radxa ROCK 5B", "rock-5b-"),
    ("NVIDIA Jetson Orin Nano", "jetson-orin-nano-"),
)


@dataclass(frozen=True)
class HeatSensor:
    """A temperature sensor: its kernel name, its file, and what it read (None: no answer)."""

    name: str
    path: str
    temp_c: float | None


def read_board_model(root: Path = Path("/")) -> str | None:
    """The board's name from the device tree or /proc/cpuinfo; None on PCs and in most VMs."""
    text = read_text(root / "proc/device-tree/model")
    if text is None:
        return cpuinfo_model(read_text(root / "proc/cpuinfo") or "")
    return text.strip("\0 \n") or None


def match_board(model: str | None, ram_bytes: int) -> DeviceProfile | None:
    """The shipped profile of this board: same family, nearest RAM size not below what is seen.

    MemTotal is less than what is soldered (firmware and kernel keep some), so the smallest profile
    that holds it is meant. None for boards without a profile.
    """
    family = next(
        (prefix for name, prefix in _BOARD_FAMILIES if model and model.startswith(name)), None
    )
    if family is None:
        return None
    sizes = [p for p in all_profiles().values() if p.id.startswith(family)]
    fitting = [profile for profile in sizes if profile.ram_bytes >= ram_bytes]
    return min(fitting, key=lambda p: p.ram_bytes, default=None)


def read_max_clocks(root: Path = Path("/")) -> dict[int, float]:
    """Processor index → highest clock in Hz, from cpufreq; empty where the kernel has none."""
    clocks = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        text = (read_text(folder / "cpufreq/cpuinfo_max_freq") or "").strip()
        if text.isdigit() and int(text) > 0:
            clocks[int(folder.name[3:])] = int(text) * 1e3
    return clocks


def read_heat_sensors(root: Path = Path("/")) -> tuple[HeatSensor, ...]:
    """Thermal zones that the kernel lists, in order."""
    sensors = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name = (read_text(zone / "type") or "").strip() or zone.name
        text = (read_text(zone / "temp") or "").strip()
        millidegrees = int(text) if text.lstrip("-").isdigit() else None
        temp_c = None if millidegrees is None else millidegrees / 1000
        sensors.append(HeatSensor(name, str(zone / "temp"), temp_c))
    return tuple(sensors)


def read_machine(
    root: Path = Path("/"), usable: frozenset[int] | None = None
) -> DeviceProfile | None:
    """The profile of the Linux system under `root`; None when it shows no CPU or memory there.

    `usable` are the processors that this process may run on (None: all). Bandwidth is not measured.
    """
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    clusters = group_clusters(parse_cpuinfo(cpuinfo), read_max_clocks(root), usable)
    meminfo = parse_meminfo(read_text(root / "proc/meminfo") or "")
    total, free = usable_memory(meminfo, read_limits(root))
    if not clusters or total is None or free is None:
        return None
    model = read_board_model(root)
    known = match_board(model, meminfo.get("MemTotal", total))
    name = model or _host_name(clusters)
    memory = Memory(total, max(0, total - free))
    if known is None:
        return DeviceProfile(THIS_MACHINE, name, memory, clusters)
    memory = replace(
        memory,
        bandwidth_theoretical=known.memory.bandwidth_theoretical,
        bandwidth_sustained=known.memory.bandwidth_sustained,
    )
    return replace(known, id=THIS_MACHINE, name=name, aliases=(), memory=memory, clusters=clusters)


def probe_this_machine(*, measure: bool = True) -> DeviceProfile:
    """This machine, as free as it is right now. `measure` times memory for some 0.1 s where no
    published figure exists; without it the bandwidth stays None and no speed is predicted.
    """
    usable = None
    if hasattr(os, "sched_getaffinity"):
        usable = frozenset(os.sched_getaffinity(0))
    profile = read_machine(usable=usable) if sys.platform.startswith("linux") else None
    if profile is None:
        profile = _portable_profile()
    libc = " ".join(platform.libc_ver()).strip() or None
    software = Software(
        os=platform.platform(terse=True), libc=libc, python=platform.python_version()
    )
    profile = replace(profile, software=software)
    if profile.memory.bandwidth_sustained is None and measure:
        bandwidth = measure_copy_bandwidth(default_threads(profile))
        memory = replace(profile.memory, bandwidth_sustained=bandwidth)
        profile = replace(profile, memory=memory, basis="measured here")
    return profile


def _portable_profile() -> DeviceProfile:
    """What psutil knows on systems without /proc (macOS, BSD, Windows)."""
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    machine = platform.machine().lower()
    # Every Arm Mac has these; on x86 nothing portable tells, so that only the baseline is claimed.
    isa = frozenset(["neon", "fp16", "dotprod", "lse"]) if machine == "arm64" else frozenset[str]()
    cluster = CpuCluster(platform.processor() or machine or "unknown", cores, None, isa)
    available = min(memory.available, memory.total)
    return DeviceProfile(
        THIS_MACHINE,
        f"{platform.system()} {machine}".strip(),
        Memory(memory.total, memory.total - available),
        (cluster,),
    )


def _host_name(clusters: tuple[CpuCluster, ...]) -> str:
    return " + ".join(f"{cluster.count}x {cluster.core}" for cluster in clusters)
