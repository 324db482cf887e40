"""Boards whose sensors say what real ones have said (`fixtures/boards`, sources beside them)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from boardfit.edge.probe.sensors import parse_tegra_power
from boardfit.edge.probe.system import CapturedSystem
from tests.edge.report.stored import PI5

HERE = Path(__file__).parent
TEXTS = HERE / "fixtures/boards"
PMIC = HERE.parent / "probe/fixtures/pmic-raspberry-pi-5.txt"
CLOCK = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"
ZONE = "/sys/class/thermal/thermal_zone{}/{}"

ORIN_NANO: dict[str, Any] = {
    "model": "NVIDIA Jetson Orin Nano Developer Kit",
    "profile": "jetson-orin-nano-8gb",
    "cpu": "Cortex-A78AE",
    "n_cores": 6,
    "ram_bytes": 7620 * 2**20,
    "memory_limit_bytes": None,
    "arch": "aarch64",
    "governor": "schedutil",
}
PHONE: dict[str, Any] = {
    "model": "Samsung Galaxy S22",
    "profile": "phone-8gb",
    "cpu": "Cortex-X2",
    "n_cores": 8,
    "ram_bytes": 8 * 2**30,
    "memory_limit_bytes": None,
    "arch": "aarch64",
    "governor": "walt",
}


class Replay:
    """A system (`boardfit.edge.probe.system.System`) that shows one capture after the other, a look
    each.
    """

    def __init__(self, captures: list[CapturedSystem]) -> None:
        self._captures, self._i = captures, 0
        clock = CLOCK.format(0)
        self._last_read = clock if captures[0].read(clock) else ZONE.format(0, "temp")

    def _now(self) -> CapturedSystem:
        return self._captures[self._i % len(self._captures)]

    def read(self, path: str) -> str | None:
        text = self._now().read(path)
        self._i += path == self._last_read
        return text

    def glob(self, pattern: str) -> list[str]:
        return self._now().glob(pattern)

    def output(self, command: str) -> str | None:
        return self._now().output(command)


def raspberry_pi_5() -> list[CapturedSystem]:
    text = (TEXTS / "raspberry-pi-5-hot.txt").read_text()
    looks = zip(
        re.findall(r"frequency\(0\)=(\d+)", text), re.findall(r"temp=.*", text), strict=True
    )
    return [
        CapturedSystem(
            {CLOCK.format(0): f"{int(hertz) // 1000}\n"}, {"temp": temp, "pmic": PMIC.read_text()}
        )
        for hertz, temp in looks
    ]


def orin_nano() -> list[CapturedSystem]:
    captures = []
    for line in (TEXTS / "tegrastats-jetson-orin-nano.txt").read_text().splitlines():
        clocks = re.findall(r"\d%@(\d+)", line.partition(" CPU [")[2].partition("]")[0])
        files = {CLOCK.format(i): f"{int(mhz) * 1000}\n" for i, mhz in enumerate(clocks)}
        for i, (name, temp) in enumerate(re.findall(r"\b([A-Za-z]\w*)@([\d.]+)C\b", line)):
            files[ZONE.format(i, "type")] = f"{name}-thermal\n"
            files[ZONE.format(i, "temp")] = f"{round(float(temp) * 1000)}\n"
        files["/sys/class/hwmon/hwmon1/name"] = "ina3221\n"
        files["/sys/class/hwmon/hwmon1/power1_label"] = "VDD_IN\n"
        watts = parse_tegra_power(line)["VDD_IN"]
        files["/sys/class/hwmon/hwmon1/power1_input"] = f"{round(watts * 1e6)}\n"
        captures.append(CapturedSystem(files))
    return captures


def phone() -> list[CapturedSystem]:
    text = (TEXTS / "thermalservice-galaxy-s22.txt").read_text()
    files = {}
    for i, (value, name) in enumerate(re.findall(r"mValue=([\d.]+),.*mName=(\w+)", text)):
        files[ZONE.format(i, "type")] = f"{name}\n"
        files[ZONE.format(i, "temp")] = f"{round(float(value) * 1000)}\n"
    return [CapturedSystem(files)]


BOARDS = {
    "raspberry-pi-5": (raspberry_pi_5, PI5),
    "jetson-orin-nano": (orin_nano, ORIN_NANO),
    "phone": (phone, PHONE),
}
