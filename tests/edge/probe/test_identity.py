"""What boards write about themselves → their profiles, and what a board must not be taken for."""

from __future__ import annotations

import pytest

from boardfit.device_profiles.spellings import BoardNames
from boardfit.edge.probe.command import report_lines
from boardfit.edge.probe.identity import match_boards, read_board_names
from boardfit.edge.probe.machine import ProbeReport, read_report, userland_bits
from boardfit.edge.probe.sensors import parse_vcgencmd_temp
from boardfit.edge.probe.system import CapturedSystem, LocalSystem

MIB = 2**20
CORE = "processor : {i}\nFeatures : {flags}\nCPU implementer : 0x41\nCPU part : {part}\n\n"


@pytest.mark.parametrize(
    ("text", "mib", "board"),
    [
        ("NVIDIA Orin Nano Developer Kit", 6400, "jetson-orin-nano-8gb"),
        ("NVIDIA Jetson Orin Nano Developer Kit Super", 7619, "jetson-orin-nano-super-8gb"),
        ("NVIDIA Orin NX Developer Kit", 15200, "jetson-orin-nx-16gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 30500, "jetson-agx-orin-32gb"),
        ("Jetson-AGX", 31900, "jetson-agx-xavier-32gb"),
        ("quill", 7860, "jetson-tx2-8gb"),
        ("NVIDIA Jetson Nano 2GB Developer Kit", 1980, None),
        ("NVIDIA Jetson TX2 NX Developer Kit", 3900, None),
        ("Raspberry Pi Compute Module 5 Lite Rev 1.0", 3990, "raspberry-pi-cm5-4gb"),
        ("Raspberry Pi 500 Rev 1.0", 16200, "raspberry-pi-500-plus"),
        ("Raspberry Pi Foundation Raspberry Pi 4 Model B", 3790, "raspberry-pi-4b-4gb"),
        ("Raspberry Pi 3 Model B Rev 1.2", 920, None),
        ("Radxa ROCK 5B Plus", 31800, "rock-5b-plus-32gb"),
        ("Radxa ROCK 5A", 7900, None),
        ("Radxa ROCK 5B", 31900, "rock-5b-plus-32gb"),
        ("Orange Pi 5B", 15700, "orange-pi-5-16gb"),
        ("Xunlong Orange Pi 5 Ultra", 15700, None),
        ("Radxa ZERO 3", 1980, "radxa-zero-3w-2gb"),
        ("Pine64 RK3566 Quartz64-A Board", 7800, "quartz64-a-8gb"),
        ("Pine64 RK3566 Quartz64-B Board", 3800, None),
        ("samsung SM-S921U1", 7300, "galaxy-s24"),
        ("samsung SM-S921B", 7300, None),  # the same name with another chip
        ("samsung SC-52E", 11300, "galaxy-s24-ultra"),
        ("OnePlus CPH2655", 15300, "oneplus-13-16gb"),
        ("Google Pixel 8 Pro", 11500, None),
        ("Pixel 8a", 7500, "pixel-8a"),
    ],
)
def test_public_spellings(text: str, mib: int, board: str | None) -> None:
    found = match_boards(BoardNames((text,)), mib * MIB)
    assert (found[0].id if found else None) == board


def test_compatible_comes_before_the_model() -> None:
    """A vendor's kernel calls a board by a name of its own; its machine-readable name is right."""
    system = CapturedSystem(
        {
            "/proc/device-tree/model": "Some carrier board\0",
            "/proc/device-tree/compatible": "nvidia,p3509-0000+p3767-0001\0nvidia,tegra234\0",
        }
    )
    names = read_board_names(system)
    assert names.compatible == ("nvidia,p3509-0000+p3767-0001", "nvidia,tegra234")
    assert [p.id for p in match_boards(names, 7400 * MIB)] == ["jetson-orin-nx-8gb"]


def test_compatible_as_the_reader_over_ssh_sends_it() -> None:
    system = CapturedSystem(
        {"/proc/device-tree/compatible": "xunlong,orangepi-5\nrockchip,rk3588s"}
    )
    assert match_boards(read_board_names(system), 7800 * MIB)[0].id == "orange-pi-5-8gb"


def test_a_phone_is_known_by_code_name_and_refused_by_chip() -> None:
    def phone(soc: str) -> BoardNames:
        text = (
            "[ro.product.manufacturer]: [samsung]\n[ro.product.model]: [Galaxy]\n"
            f"[ro.product.device]: [e1q]\n[ro.soc.model]: [{soc}]\n"
        )
        return read_board_names(CapturedSystem({}, {"getprop": text}))

    assert [p.id for p in match_boards(phone("SM8650"), 7300 * MIB)] == ["galaxy-s24"]
    assert match_boards(phone("s5e9945"), 7300 * MIB) == ()


def test_a_marketing_name_counts() -> None:
    text = "[ro.product.model]: [XX1]\n[ro.vendor.oplus.market.name]: [OnePlus 12]\n"
    names = read_board_names(CapturedSystem({}, {"getprop": text}))
    assert names.names[0] == "XX1"
    assert [p.id for p in match_boards(names, 11400 * MIB)] == ["oneplus-12-12gb"]


def test_a_pc_is_known_by_its_chip_but_no_virtual_machine() -> None:
    cpuinfo = "processor : 0\nmodel name : Intel(R) N100\nflags : fpu sse{more}\n"
    for more, boards in (("", ["n100-16gb"]), (" hypervisor", [])):
        system = CapturedSystem({"/proc/cpuinfo": cpuinfo.format(more=more)})
        assert [p.id for p in match_boards(read_board_names(system), 15800 * MIB)] == boards


def board(model: str, kib: int, release: str = "", libc: str = "glibc 2.36") -> CapturedSystem:
    cores = "".join(CORE.format(i=i, flags="fp asimd", part="0xd08") for i in range(4))
    files = {
        "/proc/cpuinfo": cores,
        "/proc/meminfo": f"MemTotal: {kib} kB\nMemAvailable: {kib // 2} kB\n",
        "/proc/device-tree/model": model + "\0",
        "/etc/os-release": release,
    }
    return CapturedSystem(files, {"uname": "Linux 6.12 aarch64", "libc": libc})


def report(system: CapturedSystem) -> ProbeReport:
    found = read_report(system)
    assert found is not None
    return found


def test_two_possible_boards_are_both_named() -> None:
    found = report(board("NVIDIA Jetson Orin Nano Developer Kit", 7800000))
    assert found.possible == ("jetson-orin-nano-8gb", "jetson-orin-nano-super-8gb")
    text = "\n".join(report_lines(found, found.profile, None))
    assert "jetson-orin-nano-8gb (or jetson-orin-nano-super-8gb" in text


@pytest.mark.parametrize(
    ("files", "outputs", "bits"),
    [
        ({"/etc/os-release": "NAME=x\nID=raspbian\n"}, {"uname": "Linux 6.12 aarch64"}, 32),
        ({"/etc/os-release": "ID=debian\n"}, {"uname": "Linux 6.12 aarch64"}, None),
        ({"/etc/os-release": "ID=debian\n"}, {"long_bit": "32\n"}, 32),
        ({}, {"uname": "Linux 6.12 aarch64", "elf_class": "   1\n"}, 32),
        ({}, {"elf_class": "   2\n", "long_bit": "64"}, 64),
        ({}, {"uname": "Linux 6.1 armv7l"}, 32),
    ],
)
def test_how_wide_a_userland_is(
    files: dict[str, str], outputs: dict[str, str], bits: int | None
) -> None:
    assert userland_bits(CapturedSystem(files, outputs)) == bits


def test_this_system_says_how_wide_it_is() -> None:
    assert userland_bits(LocalSystem()) == 64


def test_a_32_bit_userland_is_named_at_probe() -> None:
    release = 'PRETTY_NAME="Raspbian GNU/Linux 12 (bookworm)"\nID=raspbian\n'
    found = report(board("Raspberry Pi 4 Model B Rev 1.5", 7996720, release))
    text = "\n".join(report_lines(found, found.profile, None))
    assert found.matched == "raspberry-pi-4b-8gb"
    assert "32-bit programs on a 64-bit kernel" in text
    assert found.profile.software.wheel_tags == ()


def test_wheels_for_glibc_are_not_for_alpine() -> None:
    release = 'NAME="Alpine Linux"\nID=alpine\n'
    tree = board("Raspberry Pi 5 Model B Rev 1.0", 8100000, release, libc="")
    found = report(tree)
    assert "musl, not glibc" in "\n".join(report_lines(found, found.profile, None))
    software = found.profile.software
    assert (software.libc, software.wheel_tags) == ("musl", ())


def test_what_a_sensor_that_is_off_reads_is_no_temperature() -> None:
    assert parse_vcgencmd_temp("temp=-256.0'C") is None
