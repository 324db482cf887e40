"""Parsers over text from real boards, and the machine put together from a tree of such files."""

from __future__ import annotations

from pathlib import Path

import pytest

import boardfit.edge.probe.machine as machine
from boardfit.device_profiles.spellings import BoardNames
from boardfit.edge.probe.cpu import group_clusters, parse_cpuinfo
from boardfit.edge.probe.identity import match_boards
from boardfit.edge.probe.machine import probe_this_machine, read_report
from boardfit.edge.probe.measure import measure_copy_bandwidth
from boardfit.edge.probe.memory import (
    CgroupMount,
    available_bytes,
    cgroup_folders,
    parse_cgroup_mounts,
    parse_cgroup_path,
    parse_limit,
    parse_meminfo,
)
from boardfit.edge.probe.sensors import read_heat
from boardfit.edge.probe.system import LocalSystem

FIXTURES = Path(__file__).parent / "fixtures"
X86 = """processor\t: {i}
model name\t: Intel(R) N100
cpu MHz\t\t: {mhz}
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse sse2 ssse3 sse4_1 sse4_2 avx f16c avx2 fma avx_vnni
"""


def text(name: str) -> str:
    return (FIXTURES / name).read_text()


@pytest.mark.parametrize(
    ("name", "clusters"),
    [
        (
            "cpuinfo-raspberry-pi-5.txt",
            [("cortex-a76", 4, {"neon", "fp16", "dotprod", "lse"})],
        ),
        ("cpuinfo-raspberry-pi-4.txt", [("cortex-a72", 4, {"neon"})]),
        ("cpuinfo-jetson-nano.txt", [("cortex-a57", 4, {"neon"})]),
        (
            "cpuinfo-jetson-tx2-three-cores.txt",
            [("cortex-a57", 2, {"neon"}), ("denver-2", 1, {"neon"})],
        ),
        (
            "cpuinfo-rk3588-big-cores-offline.txt",
            [("cortex-a55", 4, {"neon", "fp16", "dotprod", "lse"})],
        ),
        # A 32-bit kernel says "neon", but the engine's 64-bit kernels cannot run under it.
        ("cpuinfo-raspberry-pi-3-32bit.txt", [("cortex-a53", 4, set())]),
    ],
)
def test_cores_of_real_boards(name: str, clusters: list[tuple[str, int, set[str]]]) -> None:
    found = group_clusters(parse_cpuinfo(text(name)))
    assert [(c.core, c.count, set(c.isa)) for c in found] == clusters
    assert all(cluster.clock_hz is None for cluster in found)  # cpuinfo on Arm tells no clock


def test_x86_threads_of_one_core_count_once() -> None:
    blocks = [X86.format(i=i, core=i // 2, mhz=2900.1 + i / 10) for i in range(8)]
    (cluster,) = group_clusters(parse_cpuinfo("\n".join(blocks)))
    assert cluster.count == 4
    assert cluster.core == "Intel(R) N100"
    assert cluster.isa == {"sse42", "avx", "avx2", "fma", "f16c", "avx_vnni"}
    assert cluster.clock_hz == pytest.approx(2.9e9)


def test_only_usable_cores_count_and_cpufreq_beats_cpuinfo() -> None:
    cores = parse_cpuinfo(text("cpuinfo-raspberry-pi-5.txt"))
    (cluster,) = group_clusters(cores, {0: 2.4e9, 1: 2.4e9, 2: 2.4e9}, frozenset([1, 2]))
    assert (cluster.count, cluster.clock_hz) == (2, 2.4e9)


@pytest.mark.parametrize("garbage", ["", "\0\0", "processor", "processor : x\n", "a:b\n\nc:d"])
def test_garbage_is_no_core(garbage: str) -> None:
    assert parse_cpuinfo(garbage) == ()


def test_an_unknown_part_keeps_its_numbers() -> None:
    (core,) = parse_cpuinfo("processor: 0\nCPU implementer: 0x48\nCPU part: 0xfff\n")
    assert core.core == "arm-0x48-0xfff"


def test_meminfo_in_bytes() -> None:
    found = parse_meminfo(text("meminfo-raspberry-pi-3.txt"))
    assert found["MemTotal"] == 949328 * 1024
    assert found["Active(anon)"] == 7116 * 1024
    assert available_bytes(found) == 884628 * 1024


def test_old_kernels_without_mem_available() -> None:
    found = parse_meminfo(text("meminfo-openwrt-no-available.txt"))
    assert available_bytes(found) == (80288 + 21700) * 1024
    assert available_bytes({}) is None


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def test_cgroup_mounts_and_paths() -> None:
    mounts = parse_cgroup_mounts(V2 + V1.format(root="/") + "broken line\n")
    assert mounts == (
        CgroupMount(2, "/sys/fs/cgroup", "/"),
        CgroupMount(1, "/sys/fs/cgroup/memory", "/"),
    )
    own = "9:name=systemd:/\n4:memory:/a/b\n0::/user.slice\n"
    assert parse_cgroup_path(own, 1) == "/a/b"
    assert parse_cgroup_path(own, 2) == "/user.slice"
    assert parse_cgroup_path("", 2) is None


def test_every_limit_on_the_way_up_counts() -> None:
    assert cgroup_folders(CgroupMount(2, "/cg", "/"), "/a/b") == ("/cg/a/b", "/cg/a", "/cg")
    assert cgroup_folders(CgroupMount(1, "/cg", "/docker/x"), "/docker/x/y") == ("/cg/y", "/cg")
    assert cgroup_folders(CgroupMount(1, "/cg", "/docker/x"), "/elsewhere") == ("/cg",)
    assert cgroup_folders(CgroupMount(2, "/cg", "/"), "/../../up") == ("/cg",)


def test_no_limit_is_none() -> None:
    assert parse_limit("max\n") is None
    assert parse_limit("9223372036854771712\n") is None
    assert parse_limit("") is None
    assert parse_limit("536870912\n") == 2**29


def put(root: Path, path: str, content: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)


def pi5_tree(root: Path) -> Path:
    put(root, "proc/cpuinfo", text("cpuinfo-raspberry-pi-5.txt"))
    put(root, "proc/meminfo", "MemTotal: 8256000 kB\nMemAvailable: 7500000 kB\n")
    put(root, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    for i in range(4):
        folder = f"sys/devices/system/cpu/cpu{i}/cpufreq"
        put(root, f"{folder}/cpuinfo_max_freq", "2400000\n")
    put(root, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    put(root, "sys/class/thermal/thermal_zone0/temp", "48850\n")
    put(root, "sys/class/thermal/thermal_zone1/type", "broken\n")
    return root


def test_a_known_board_brings_its_published_bandwidth(tmp_path: Path) -> None:
    report = read_report(LocalSystem(pi5_tree(tmp_path)))
    assert report is not None
    profile = report.profile
    assert profile is not None
    assert profile.id == "this-machine"
    assert profile.name == "Raspberry Pi 5 Model B Rev 1.0"
    assert profile.memory.bandwidth_sustained == pytest.approx(11.34e9)
    assert profile.ram_bytes == 8256000 * 1024
    assert profile.free_ram_bytes == 7500000 * 1024
    assert profile.clusters[0].clock_hz == 2.4e9
    assert profile.engine_support("llama_cpp") is not None


def test_missing_sensors_are_none_never_zero(tmp_path: Path) -> None:
    first, second = read_heat(LocalSystem(pi5_tree(tmp_path)))
    assert (first.name, first.temp_c) == ("cpu-thermal", 48.85)
    assert (second.name, second.temp_c) == ("broken", None)
    assert read_heat(LocalSystem(tmp_path / "nowhere")) == ()


def test_a_v2_limit_below_ram_counts(tmp_path: Path) -> None:
    root = pi5_tree(tmp_path)
    put(root, "proc/self/mountinfo", V2)
    put(root, "proc/self/cgroup", "0::/box/inner\n")
    put(root, "sys/fs/cgroup/box/memory.max", f"{512 * 2**20}\n")
    put(root, "sys/fs/cgroup/box/memory.current", f"{200 * 2**20}\n")
    put(root, "sys/fs/cgroup/box/memory.stat", f"anon 1\ninactive_file {80 * 2**20}\n")
    put(root, "sys/fs/cgroup/box/inner/memory.max", "max\n")
    report = read_report(LocalSystem(root))
    assert report is not None
    profile = report.profile
    assert profile is not None
    assert profile.ram_bytes == 512 * 2**20
    assert profile.free_ram_bytes == (512 - 200 + 80) * 2**20
    assert profile.memory.bandwidth_sustained is not None  # still known to be a Pi 5


def test_a_v1_limit_below_ram_counts(tmp_path: Path) -> None:
    root = pi5_tree(tmp_path)
    put(root, "proc/self/mountinfo", V1.format(root="/docker/x"))
    put(root, "proc/self/cgroup", "4:memory:/docker/x\n")
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{300 * 2**20}\n")
    put(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{400 * 2**20}\n")
    report = read_report(LocalSystem(root))
    assert report is not None
    profile = report.profile
    assert profile is not None
    assert (profile.ram_bytes, profile.free_ram_bytes) == (300 * 2**20, 0)


def test_an_empty_tree_is_no_machine(tmp_path: Path) -> None:
    assert read_report(LocalSystem(tmp_path)) is None


@pytest.mark.parametrize(
    ("model", "mib", "board"),
    [
        ("Raspberry Pi 4 Model B Rev 1.5", 3794, "raspberry-pi-4b-4gb"),
        ("Raspberry Pi 4 Model B Rev 1.5", 1848, "raspberry-pi-4b-2gb"),
        ("Raspberry Pi Zero 2 W Rev 1.0", 416, "raspberry-pi-zero-2-w"),
        ("Raspberry Pi 5 Model B Rev 1.1", 16000, "raspberry-pi-5-16gb"),
        ("Raspberry Pi 5 Model B Rev 1.1", 30000, None),
        ("Radxa ROCK 5B", 7900, "rock-5b-8gb"),
        ("Raspberry Pi Compute Module 4 Rev 1.1", 3794, "raspberry-pi-cm4-4gb"),
        ("Raspberry Pi 400 Rev 1.0", 3794, "raspberry-pi-400"),
        ("ASUS Tinker Board 3N", 3794, None),
        (None, 8000, None),
    ],
)
def test_boards_are_told_apart_by_their_ram(model: str | None, mib: int, board: str | None) -> None:
    found = match_boards(BoardNames((model,) if model else ()), mib * 2**20)
    assert (found[0].id if found else None) == board


def test_this_machine_is_measured() -> None:
    profile = probe_this_machine()
    assert profile.id == "this-machine"
    assert 0 <= profile.free_ram_bytes <= profile.ram_bytes
    assert profile.n_cores >= 1
    assert profile.memory.bandwidth_sustained and profile.memory.bandwidth_sustained > 1e8


def test_a_system_without_proc_still_has_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine.platform, "processor", lambda: "arm")
    profile = probe_this_machine(measure=False)
    assert profile.isa == {"neon", "fp16", "dotprod", "lse"}
    assert profile.memory.bandwidth_sustained is None
    assert profile.ram_bytes > 0


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_bandwidth_is_a_plausible_number(n_threads: int) -> None:
    rate = measure_copy_bandwidth(n_threads, block_bytes=4 * 2**20, seconds=0.01)
    assert 1e8 < rate < 1e13
