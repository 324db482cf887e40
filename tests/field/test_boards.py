"""What boards and phones write about themselves, and what is concluded from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pytest

from boardfit.device_profiles.spellings import BoardNames
from boardfit.edge.probe.command import report_lines
from boardfit.edge.probe.identity import match_boards
from boardfit.edge.probe.machine import read_report
from boardfit.edge.probe.sensors import parse_tegra_power
from boardfit.edge.probe.system import CapturedSystem

#: captures/boards.tsv: text of the device tree or of getprop, MemTotal in MiB, profile.
BOARDS = [
    ("NVIDIA Orin Nano Developer Kit", 7620, "jetson-orin-nano-8gb"),
    ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7619,
     "jetson-orin-nano-super-8gb"),
    ("Jetson AGX Orin Developer Kit", 62800, "jetson-agx-orin-64gb"),
    ("Raspberry Pi 5 Model B Rev 1.1", 16200, "raspberry-pi-5-16gb"),
    ("Raspberry Pi Zero 2 Rev 1.0", 416, "raspberry-pi-zero-2-w"),
    ("Radxa ROCK 5 Model B", 15800, "rock-5b-16gb"),
    ("Xunlong Orange Pi 5", 15700, "orange-pi-5-16gb"),
    ("Xunlong Orange Pi 5 Max", 15700, None),
    ("Xunlong Orange Pi 5 Plus", 15700, None),
    ("Rockchip RK3566 OPi 3B", 3700, "orange-pi-3b-4gb"),
    ("Xunlong Orange Pi 3B", 3700, "orange-pi-3b-4gb"),
    ("Pine64 Quartz64 Model A", 3700, "quartz64-a-4gb"),
    ("samsung SM-S928B", 11500, "galaxy-s24-ultra"),
    ("samsung SM-S911B", 7300, "galaxy-s23"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "mib", "board"), BOARDS)
def test_board_text(text: str, mib: int, board: str | None) -> None:
    found = match_boards(BoardNames((text,)), mib << 20)
    assert (found[0].id if found else None) == board


A72 = "fp asimd evtstrm crc32 cpuid"
A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"
X4 = A76 + " sve2 svei8mm svebf16 i8mm bf16"


def arm(parts: str, features: str) -> str:
    return "".join(
        f"processor\t: {i}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
        for i, part in enumerate(parts.split())
    )


class Capture(NamedTuple):
    """Files and outputs of a board, words of its report, and words that it must not have."""

    cpuinfo: str
    kib: int
    files: Mapping[str, str]
    outputs: Mapping[str, str]
    words: tuple[str, ...]
    absent: tuple[str, ...] = ()


TREE, RELEASE = "/proc/device-tree/model", "/etc/os-release"
CAPTURES = {
    "pi4-32bit-userland": Capture(
        arm("0xd08 " * 4, A72), 7996720,
        {TREE: "Raspberry Pi 4 Model B Rev 1.5\0", RELEASE: "ID=raspbian\n"},
        {"uname": "Linux 6.12.47+rpt-rpi-v8 aarch64", "throttled": "throttled=0x50005\n",
         "libc": "glibc 2.36"},
        ("raspberry-pi-4b-8gb", "32-bit programs on a 64-bit kernel", "throttled now")),
    "alpine-pi5": Capture(
        arm("0xd0b " * 4, A76), 8100000,
        {TREE: "Raspberry Pi 5 Model B Rev 1.0\0", RELEASE: "NAME=Alpine\nID=alpine\n"},
        {"uname": "Linux 6.12.30-0-rpi aarch64"},
        ("raspberry-pi-5-8gb", "musl, not glibc"), ("32-bit",)),
    "orin-nano-cv0": Capture(
        arm("0xd42 " * 6, A76), 7802000, {TREE: "NVIDIA Orin Nano Developer Kit\0"},
        {"tegrastats": "RAM 1800/7619MB CPU [5%@1510,off] CV0@-256C GPU@45.8C VDD_IN 5299mW/1mW"},
        ("jetson-orin-nano-8gb", "5.30 W"), ("256",)),
    "galaxy-sm-s928b": Capture(
        arm("0xd80 0xd80 0xd81 0xd81 0xd81 0xd81 0xd81 0xd82", X4), 11300000, {},
        {"getprop": "[ro.product.manufacturer]: [samsung]\r\n[ro.product.model]: [SM-S928B]\r\n"
         "[ro.product.device]: [e3q]\r\n[ro.soc.model]: [SM8650]\r\n",
         "uname": "Linux 6.1.145-android14-11 aarch64"},
        ("galaxy-s24-ultra", "1x cortex-x4", "i8mm")),
    "visionfive2": Capture(
        "".join(f"processor\t: {i}\nisa\t\t: rv64imafdc_zba_zbb\nuarch\t\t: sifive,u74-mc\n\n"
                for i in range(4)), 8134000, {TREE: "StarFive VisionFive 2 v1.3B\0"}, {},
        ("StarFive VisionFive 2 v1.3B", "4x "), ("known board",)),
    "loongson-3a6000": Capture(
        "".join(f"processor\t\t: {i}\nModel Name\t\t: Loongson-3A6000\nFeatures\t\t: lsx lasx\n\n"
                for i in range(4)), 16000000, {}, {},
        ("4x Loongson-3A6000", "15.3 GiB"), ("known board",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CAPTURES)
def test_capture(name: str) -> None:
    capture = CAPTURES[name]
    memory = f"MemTotal: {capture.kib} kB\nMemAvailable: {capture.kib // 2} kB\n"
    files = {"/proc/cpuinfo": capture.cpuinfo, "/proc/meminfo": memory, **capture.files}
    found = read_report(CapturedSystem(files, dict(capture.outputs)))
    assert found is not None
    text = "\n".join(report_lines(found, found.profile, None))
    assert all(word in text for word in capture.words), text
    assert not any(word in text for word in (*capture.absent, "None", "-256")), text


@pytest.mark.parametrize(
    ("line", "power_w"),
    [
        ("RAM 3276/7859MB (lfb 5x4MB) SWAP 1626/12122MB (cached 181MB) CPU [44%@1421,off] APE 150 "
         "PLL@42.5C PMIC@50C GPU@39.5C VDD_SYS_GPU 182/182 VDD_IN 5297/5297",
         {"VDD_SYS_GPU": 0.182, "VDD_IN": 5.297}),
        ("07-02-2026 10:00:00 RAM 9000/125772MB CPU [1%@2601] cpu@48.5C/100C tj@62.906C/105C "
         "VDD_GPU 5525mW/5525mW VIN 45000mW/45000mW",
         {"VDD_GPU": 5.525, "VIN": 45.0}),
        ("07-25-2026 09:08:28 RAM 20642/62817MB CPU [23%@2201] EMC_FREQ 3%@3199 GR3D_FREQ "
         "0%@[1300,1300] NVENC0 off APE 174 cpu@52.968C/52.968C VIN_SYS_5V0 5000mW/5000mW",
         {"VIN_SYS_5V0": 5.0}),
        ("RAM 8000/125772MB SWAP 0/0MB CPU [1%@972,off] EMC_FREQ @665 GR3D_FREQ @[0,0,0] "
         "NVENC0_FREQ @0 gpu@41.2C VIN 30000mW/30000mW",
         {"VIN": 30.0}),
        ("RAM 1800/7619MB CPU [5%@1510,off] CV0@-256C GPU@45.8C VDD_IN 5299mW/5299mW",
         {"VDD_IN": 5.299}),
        ("RAM 1234/3964MB IRAM 0/252kB(lfb 252kB) CPU [10%@102] EMC_FREQ 0% PMIC@100C GPU@32C "
         "thermal@32.75C POM_5V_IN 1500/1500 POM_5V_GPU 0/0",
         {"POM_5V_IN": 1.5, "POM_5V_GPU": 0.0}),
    ],
    ids=["tx2-jp4", "thor-jp7", "orin-jp7.2", "thor-no-percent", "orin-cv-off", "nano"],
)  # fmt: skip
def test_tegrastats(line: str, power_w: dict[str, float]) -> None:
    assert parse_tegra_power(line) == power_w
