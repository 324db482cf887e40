"""Describe a system as a `DeviceProfile`: parsers on Linux, psutil elsewhere."""

import os
import platform
import re
import sys
from dataclasses import dataclass, replace

import psutil

from boardfit.device_profiles.catalog import THIS_MACHINE, user_profiles
from boardfit.device_profiles.cost.speed import default_threads
from boardfit.device_profiles.profile import (
    BoardMemory,
    CpuCluster,
    DeviceProfile,
    Software,
    Storage,
)
from boardfit.edge.probe.cpu import group_clusters, parse_cpuinfo
from boardfit.edge.probe.identity import (
    AndroidFacts,
    android_facts,
    match_boards,
    parse_getprop,
    read_board_names,
)
from boardfit.edge.probe.measure import measure_copy_bandwidth
from boardfit.edge.probe.memory import parse_meminfo, read_limits, usable_memory
from boardfit.edge.probe.sensors import (
    HeatSensor,
    PowerSensor,
    parse_throttled,
    read_heat,
    read_power,
)
from boardfit.edge.probe.storage import storage_medium
from boardfit.edge.probe.system import LocalSystem, System, parse_index_list, read_number

_PRETTY_NAME = re.compile(r'^PRETTY_NAME="?([^"\n]{1,200})"?$', re.MULTILINE)
# Distributions whose C library is musl: wheels for glibc do not load there.
_MUSL = re.compile(r'^ID(?:_LIKE)?="?(?:[a-z -]*\b)?(alpine|postmarketos|chimera)\b', re.MULTILINE)
# Raspbian is the 32-bit system for Raspberry Pis; the 64-bit one calls itself Debian.
_RASPBIAN = re.compile(r'^ID="?raspbian"?$', re.MULTILINE)
_MACHINES_32_BIT = ("armv6l", "armv7l", "armv8l", "i386", "i486", "i586", "i686")
_VERSION = re.compile(r"\b(\d{1,3}(?:\.\d{1,4}){1,3})\b")


@dataclass(frozen=True)
class ProbeReport:
    """What a probe read. `profile` is for planning; the rest is for people. `n_cores_present` and
    `n_cores_online` are logical processors, None if unknown. `limit_bytes` is the smallest cgroup
    limit, None without any. `throttled` are the firmware's bits. `matched` is the likeliest shipped
    board, `possible` all that nothing on this board rules out. `userland_bits` is None if unknown.
    """

    profile: DeviceProfile
    matched: str | None = None
    n_cores_present: int | None = None
    n_cores_online: int | None = None
    limit_bytes: int | None = None
    heat: tuple[HeatSensor, ...] = ()
    throttled: int | None = None
    power: tuple[PowerSensor, ...] = ()
    hostname: str | None = None
    android: AndroidFacts | None = None
    possible: tuple[str, ...] = ()
    userland_bits: int | None = None

    @property
    def n_cores_offline(self) -> int | None:
        if self.n_cores_present is None or self.n_cores_online is None:
            return None
        return max(0, self.n_cores_present - self.n_cores_online)


def read_max_clocks(system: System) -> dict[int, float]:
    """Processor index → highest clock in Hz, from cpufreq; empty where the kernel has none."""
    clocks = {}
    for path in system.glob("/sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"):
        index, kilohertz = re.search(r"/cpu(\d{1,4})/", path), read_number(system, path)
        if index and kilohertz is not None and 0 < kilohertz < 10**8:
            clocks[int(index[1])] = kilohertz * 1e3
    return clocks


def read_report(system: System, usable: frozenset[int] | None = None) -> ProbeReport | None:
    """Everything that can be read of a Linux or Android system without measuring; None without CPU
    or memory. `usable` are the processors that this process may run on (None: all online).
    """
    present, online = (
        parse_index_list(system.read(f"/sys/devices/system/cpu/{name}"))
        for name in ("present", "online")
    )
    if online is not None:
        usable = online if usable is None else usable & online
    cores = parse_cpuinfo(system.read("/proc/cpuinfo") or "")
    clusters = group_clusters(cores, read_max_clocks(system), usable)
    meminfo, limits = parse_meminfo(system.read("/proc/meminfo") or ""), read_limits(system)
    total, free = usable_memory(meminfo, limits)
    if not clusters or not total or free is None:
        return None
    names = read_board_names(system)
    boards = match_boards(names, meminfo.get("MemTotal", total))
    own_name = " + ".join(f"{cluster.count}x {cluster.core}" for cluster in clusters)
    profile = DeviceProfile(
        THIS_MACHINE,
        next(iter(names.names), own_name),
        BoardMemory(total, max(0, total - free)),
        clusters,
        storage=Storage(medium=storage_medium(system)),
        software=_software(system),
    )
    return ProbeReport(
        profile=_complete(system, profile, boards[0]) if boards else profile,
        matched=boards[0].id if boards else None,
        possible=tuple(board.id for board in boards),
        userland_bits=userland_bits(system),
        n_cores_present=len(present) if present else None,
        n_cores_online=len(online) if online else None,
        limit_bytes=min((limit.limit_bytes for limit in limits), default=None),
        heat=read_heat(system),
        throttled=parse_throttled(system.output("throttled")),
        power=read_power(system),
        hostname=(system.output("hostname") or "").strip() or None,
        android=android_facts(parse_getprop(system.output("getprop"))),
    )


def _complete(system: System, seen: DeviceProfile, known: DeviceProfile) -> DeviceProfile:
    """A shipped profile with what was seen in place of what it says."""
    memory = replace(
        known.memory, ram_bytes=seen.memory.ram_bytes, reserved_bytes=seen.memory.reserved_bytes
    )
    # The board's usual wheels, unless they cannot load on the system on it.
    loads = userland_bits(system) != 32 and not is_musl(system)
    return replace(
        known,
        id=THIS_MACHINE,
        name=seen.name,
        aliases=(),
        memory=memory,
        clusters=_with_known_clocks(seen.clusters, known.clusters),
        storage=seen.storage if seen.storage.medium else known.storage,
        software=replace(seen.software, wheel_tags=known.software.wheel_tags if loads else ()),
    )


def usable_processors() -> frozenset[int] | None:
    """Processors that this process may run on (taskset, cpuset); None if unknown."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def report_this_machine() -> ProbeReport:
    """This machine as free as it is right now, nothing measured. psutil stands in without /proc."""
    if sys.platform.startswith(("linux", "android")):
        report = read_report(LocalSystem(), usable_processors())
        if report is not None:
            return report
    profile = replace(_portable_profile(), software=_own_software())
    return ProbeReport(profile, hostname=platform.node() or None)


def probe_this_machine(*, measure: bool = True) -> DeviceProfile:
    """This machine, as free as it is right now. Bandwidth is what `edge probe` has measured here,
    else the published figure of a known board, else (with `measure`) timed for some 0.1 s.
    """
    report = report_this_machine()
    profile = replace(report.profile, software=_own_software())
    earlier = user_profiles().get(profile_name(report))
    if earlier is not None and earlier.clusters == profile.clusters:
        known = earlier.memory
        memory = replace(
            profile.memory,
            bandwidth_sustained=known.bandwidth_sustained,
            bandwidth_by_threads=known.bandwidth_by_threads,
        )
        measured = {"storage": earlier.storage, "kernel_speeds": earlier.kernel_speeds}
        return replace(profile, memory=memory, basis=earlier.basis, **measured)  # type: ignore[arg-type]
    if profile.memory.bandwidth_sustained is None and measure:
        n_threads = default_threads(profile)
        rate = measure_copy_bandwidth(n_threads)
        rates = ((n_threads, rate),)
        memory = replace(profile.memory, bandwidth_sustained=rate, bandwidth_by_threads=rates)
        profile = replace(profile, memory=memory, basis="measured here")
    return profile


def profile_name(report: ProbeReport) -> str:
    """Make the id of a probed board: the host name, else the model, in words with hyphens."""
    for text in (report.hostname, report.profile.name):
        slug = re.sub(r"[^a-z0-9]+", "-", (text or "").lower()).strip("-")[:60].strip("-")
        if slug and slug not in ("localhost", THIS_MACHINE):
            return slug
    return "my-board"


def _software(system: System) -> Software:
    android = android_facts(parse_getprop(system.output("getprop")))
    pretty = _PRETTY_NAME.search(system.read("/etc/os-release") or "")
    name = pretty[1].strip() if pretty else None
    if android is not None and android.release:
        name = f"Android {android.release}"
    python = _VERSION.search(system.output("python") or "")
    libc = " ".join((system.output("libc") or "").split()) or None
    if android is not None:
        libc = "bionic"
    elif libc is None and is_musl(system):
        libc = "musl"
    if name and userland_bits(system) == 32:
        name = f"{name}, 32-bit"
    return Software(os=name, libc=libc, python=python and python[1])


def userland_bits(system: System) -> int | None:
    """32 or 64: how wide the programs of this system are, under any kernel."""
    release = system.read("/etc/os-release") or ""
    words = (system.output("uname") or "").split()
    elf_class = (system.output("elf_class") or "").strip()
    if elf_class in ("1", "2"):  # EI_CLASS in the head of a running program
        return 32 * int(elf_class)
    if (bits := (system.output("long_bit") or "").strip()) in ("32", "64"):
        return int(bits)
    if _RASPBIAN.search(release) or (words and words[-1] in _MACHINES_32_BIT):
        return 32
    return None


def describe_userland(bits: int | None, profile: DeviceProfile) -> str | None:
    """What a 32-bit system means for the next step; None on a 64-bit one."""
    if bits != 32:
        return None
    # A 32-bit kernel shows none of the flags that 64-bit code can use.
    what = "32-bit programs on a 64-bit kernel" if profile.isa else "32-bit"
    return f"{what}: the engines are 64-bit and do not run there; install the 64-bit system image"


def is_musl(system: System) -> bool:
    return _MUSL.search(system.read("/etc/os-release") or "") is not None


def _own_software() -> Software:
    libc = " ".join(platform.libc_ver()).strip() or None
    return Software(platform.platform(terse=True), libc, platform.python_version())


def _with_known_clocks(
    seen: tuple[CpuCluster, ...], known: tuple[CpuCluster, ...]
) -> tuple[CpuCluster, ...]:
    """Clusters as seen; a clock that the kernel does not report is the board's published one."""
    published = {cluster.core: cluster.clock_hz for cluster in known}
    return tuple(
        cluster if cluster.clock_hz else replace(cluster, clock_hz=published.get(cluster.core))
        for cluster in seen
    )


def _portable_profile() -> DeviceProfile:
    """What psutil knows on systems without /proc (macOS, BSD, Windows)."""
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    machine = platform.machine().lower()
    # Every Arm Mac has these; on x86 no portable way exists, so only the baseline is claimed.
    isa = frozenset(["neon", "fp16", "dotprod", "lse"]) if machine == "arm64" else frozenset[str]()
    cluster = CpuCluster(platform.processor() or machine or "unknown", cores, None, isa)
    ram = BoardMemory(memory.total, memory.total - min(memory.available, memory.total))
    name = f"{platform.system()} {machine}".strip()
    return DeviceProfile(THIS_MACHINE, name, ram, (cluster,))
