"""Heat, throttling, power and identity, from text that boards printed and from garbage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.probe.cpu import parse_cpuinfo
from boardfit.edge.probe.identity import android_facts, parse_getprop, read_board_names
from boardfit.edge.probe.machine import read_report
from boardfit.edge.probe.memory import (
    parse_cgroup_mounts,
    parse_cgroup_path,
    parse_droppable,
    parse_limit,
    parse_meminfo,
)
from boardfit.edge.probe.sensors import (
    describe_throttled,
    parse_millidegrees,
    parse_pmic,
    parse_tegra_power,
    parse_throttled,
    parse_vcgencmd_temp,
    pi5_total_w,
    read_power,
)
from boardfit.edge.probe.storage import storage_medium
from boardfit.edge.probe.system import CapturedSystem, parse_index_list, parse_number

FIXTURES = Path(__file__).parent / "fixtures"


def text(name: str) -> str:
    return (FIXTURES / name).read_text()


def test_throttle_bits_in_words() -> None:
    bits = parse_throttled(text("vcgencmd-raspberry-pi-3.txt"))
    assert bits == 0x50005
    assert describe_throttled(bits) == [
        "under-voltage now",
        "throttled now",
        "under-voltage has occurred",
        "throttling has occurred",
    ]
    assert describe_throttled(0) == [] and describe_throttled(None) == []
    assert parse_throttled("VCHI initialization failed") is None
    assert parse_vcgencmd_temp(text("vcgencmd-raspberry-pi-3.txt")) == 38.6


def test_pmic_rails_without_a_pair_yield_no_power() -> None:
    rails = parse_pmic(text("pmic-raspberry-pi-5.txt"))
    assert len(rails) == 12
    assert "EXT5V" not in rails and "BATT" not in rails
    assert rails["VDD_CORE"] == pytest.approx(6.22421 * 0.861733)
    total = pi5_total_w(rails)
    assert total is not None and 7 < total < 11  # four busy cores of a Pi 5
    assert pi5_total_w({}) is None


@pytest.mark.parametrize(
    ("name", "vdd_in_w"),
    [("tegrastats-jetson-tx2.txt", 1.931), ("tegrastats-jetson-tx2-older.txt", 3.14)],
    ids=["tx2", "older"],
)
def test_the_rails_of_tegrastats(name: str, vdd_in_w: float) -> None:
    assert parse_tegra_power(text(name))["VDD_IN"] == vdd_in_w
    assert parse_tegra_power("RAM 1/2MB CPU [1%@729,off,off,2%@1510]") == {}


def test_ina3221_channels_and_rapl() -> None:
    chip = "/sys/class/hwmon/hwmon3"
    files = {
        f"{chip}/name": "ina3221\n",
        f"{chip}/in1_label": "VDD_IN\n",
        f"{chip}/in1_input": "5040\n",
        f"{chip}/curr1_input": "1200\n",
        f"{chip}/in2_label": "VDD_CPU_GPU_CV\n",
        f"{chip}/in2_input": "5032\n",
        f"{chip}/curr2_input": "broken\n",
        "/sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
        "/sys/class/powercap/intel-rapl:0/name": "package-0\n",
    }
    sensors = read_power(CapturedSystem(files))
    assert [(s.kind, s.name, s.power_w) for s in sensors] == [
        ("ina3221", "VDD_IN", pytest.approx(6.048)),
        ("ina3221", "VDD_CPU_GPU_CV", None),  # no answer is no zero
        ("rapl", "package-0", None),
    ]
    assert read_power(CapturedSystem({})) == ()


def test_old_jetsons_tell_their_power_through_tegrastats() -> None:
    system = CapturedSystem({}, {"tegrastats": text("tegrastats-jetson-tx2.txt")})
    assert {s.name: s.power_w for s in read_power(system)}["VDD_IN"] == 1.931


def test_a_phone_is_known_by_its_properties() -> None:
    properties = parse_getprop(text("getprop-pixel-8.txt"))
    facts = android_facts(properties)
    assert facts is not None
    assert (facts.name, facts.soc) == ("Google Pixel 8", "Tensor G3")
    assert android_facts({}) is None
    files = {
        "/proc/cpuinfo": text("cpuinfo-snapdragon-8-gen-3-first-cores.txt"),
        "/proc/meminfo": "MemTotal: 7600000 kB\nMemAvailable: 3900000 kB\n",
    }
    system = CapturedSystem(files, {"getprop": text("getprop-pixel-8.txt")})
    assert read_board_names(system).names[0] == "Google Pixel 8"
    report = read_report(system)
    assert report is not None and report.matched == "pixel-8"
    assert report.profile.software.libc == "bionic"
    assert report.throttled is None and report.heat == () and report.limit_bytes is None


@pytest.mark.parametrize(
    ("files", "medium"),
    [
        ({"/sys/block/mmcblk0/device/type": "SD\n"}, "microSD"),
        ({"/sys/block/mmcblk0/device/type": "MMC\n"}, "eMMC"),
        ({"/sys/block/nvme0n1/queue/rotational": "0\n"}, "NVMe SSD"),
        ({"/sys/block/sda/queue/rotational": "1\n"}, "disk"),
        ({"/sys/block/loop0/queue/rotational": "0\n"}, None),
        ({}, None),
    ],
)
def test_storage_medium(files: dict[str, str], medium: str | None) -> None:
    assert storage_medium(CapturedSystem(files)) == medium


def test_big_cores_offline_are_counted_and_left_out() -> None:
    files = {
        "/proc/cpuinfo": text("cpuinfo-rk3588-big-cores-offline.txt"),
        "/proc/meminfo": "MemTotal: 7900000 kB\nMemAvailable: 7000000 kB\n",
        "/sys/devices/system/cpu/present": "0-7\n",
        "/sys/devices/system/cpu/online": "0-3\n",
    }
    report = read_report(CapturedSystem(files))
    assert report is not None
    assert report.n_cores_offline == 4
    assert [(c.core, c.count) for c in report.profile.clusters] == [("cortex-a55", 4)]


def test_index_lists_and_numbers() -> None:
    assert parse_index_list("0-3,6\n") == {0, 1, 2, 3, 6}
    for wrong in ("", None, "3-1", "0-99999999", "a", "-1"):
        assert parse_index_list(wrong) is None
    assert parse_number("-12\n") == -12
    for wrong in ("", None, "1.5", "9" * 400, "²", "--1"):
        assert parse_number(wrong) is None
    assert parse_millidegrees("48850\n") == 48.85
    assert parse_millidegrees("-274000") is None  # colder than anything


PARSERS: list[Callable[[str], object]] = [
    parse_cpuinfo, parse_meminfo, parse_cgroup_mounts, parse_limit, parse_droppable,
    parse_getprop, parse_pmic, parse_tegra_power, parse_throttled, parse_vcgencmd_temp,
    parse_index_list, parse_number, parse_millidegrees,
    lambda text: parse_cgroup_path(text, 1), lambda text: parse_cgroup_path(text, 2),
]  # fmt: skip
PIECES = st.sampled_from(
    [
        *("processor", ":", "\n", "\n\n", "0x", "CPU part", "CPU implementer", "Features", "flags"),
        *("cpu MHz", "inf", "nan", "1e999", "-1", "99999999999999999999", "²", "MemTotal", "kB"),
        *("0::/", " - ", "cgroup2", "memory", "../", "[ro.x]: [", "]", "temp=", "'C", "throttled="),
        *("RAM 1/2MB", "CPU [", "1%@2,", "off", "VDD_IN 1/1", "_A current(1)=", "A", "\0", "\r"),
    ]
)


@pytest.mark.parametrize("parser", PARSERS)
@given(parts=st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=24))
@settings(max_examples=150, deadline=None)
def test_no_parser_ever_crashes(parser: Callable[[str], object], parts: list[str]) -> None:
    parser("".join(parts))
    parser(" ".join(parts))


@given(st.dictionaries(st.sampled_from([
    "/proc/cpuinfo", "/proc/meminfo", "/proc/self/mountinfo", "/proc/self/cgroup",
    "/proc/device-tree/model", "/sys/devices/system/cpu/online", "/etc/os-release",
    "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
]), st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=16).map("".join)))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_system_crashes_the_reader(files: dict[str, str]) -> None:
    base = {"/proc/cpuinfo": "processor: 0\n", "/proc/meminfo": "MemTotal: 9000 kB\nMemFree: 1 kB"}
    read_report(CapturedSystem({**base, **files}))
