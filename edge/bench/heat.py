"""Temperature, clock, throttle bits and power while a bench runs, and for `edge watch`."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from boardfit.edge.probe.sensors import (
    PowerSensor,
    parse_millidegrees,
    parse_pmic,
    parse_throttled,
    parse_vcgencmd_temp,
    pi5_total_w,
    read_power,
)
from boardfit.edge.probe.system import LocalSystem, System, read_number
from boardfit.edge.types import HeatSample

# The firmware's own file; the vcgencmd program reads the same bits.
FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_BITS = re.compile(r"[0-9a-fA-F]{1,8}")

METHODS = {
    "pmic": "sum of the PMIC's rails, fitted to the socket; USB devices are not in it",
    "ina3221": "the board's input rail; the supply's own loss is not in it",
    "battery": "fuel gauge, current × voltage; screen and radios are in it",
    "rapl": "the processor's package; memory, board and supply are not in it",
}
# Labels of the rail that feeds the whole board (Jetson Linux developer guide, power monitors).
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "POM_IN")


class HeatReader:
    """The sensors of a system: looked for once, read again and again."""

    def __init__(self, system: System | None = None) -> None:
        self._system = system or LocalSystem()
        self._zones = self._system.glob("/sys/class/thermal/thermal_zone*/temp")
        self._clocks = self._system.glob(
            "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
        )
        self._has_file = self._system.read(FIRMWARE) is not None
        # A program is asked only where it has answered before: starting one takes milliseconds.
        self._has_bits = not self._has_file and self._system.output("throttled") is not None
        self._has_temp = not self._zones and self._system.output("temp") is not None
        self.meter: PowerMeter | None = find_meter(self._system)

    def read(self) -> HeatSample:
        """One look. None where there is no sensor or it does not answer."""
        system = self._system
        temps = [parse_millidegrees(system.read(path)) for path in self._zones]
        if self._has_temp:
            temps.append(parse_vcgencmd_temp(system.output("temp")))
        clocks = [read_number(system, path) for path in self._clocks]
        return HeatSample(
            time.monotonic_ns(),
            temp_c=max((t for t in temps if t is not None), default=None),
            clock_hz=max((1e3 * kilohertz for kilohertz in clocks if kilohertz), default=None),
            throttled=self._throttled(),
            power_w=self.meter.read() if self.meter else None,
        )

    def _throttled(self) -> int | None:
        if self._has_file:
            text = (self._system.read(FIRMWARE) or "").strip()
            return int(text, 16) if _BITS.fullmatch(text) else None
        return parse_throttled(self._system.output("throttled")) if self._has_bits else None


def read_heat() -> HeatSample:
    """One look at this machine, without power: a counter would need two."""
    return replace(HeatReader().read(), power_w=None)


class PowerMeter(NamedTuple):
    """One sensor. `kind` is a key of METHODS. `read` gives watts now, or None for no answer."""

    kind: str
    read: Callable[[], float | None]


def find_meter(
    system: System | None = None, clock: Callable[[], float] = time.monotonic
) -> PowerMeter | None:
    """The best sensor there is, None without one."""
    system = system or LocalSystem()
    sensors = read_power(system)
    if any(sensor.kind == "pmic" and sensor.power_w is not None for sensor in sensors):
        return PowerMeter("pmic", lambda: pi5_total_w(parse_pmic(system.output("pmic"))))
    for sensor in sensors:
        if sensor.kind == "ina3221" and sensor.name in _INPUT_RAILS:
            return PowerMeter("ina3221", lambda s=sensor: _again(system, s))  # type: ignore[misc]
    battery = _battery(system)
    if battery is not None:
        return PowerMeter("battery", battery)
    for sensor in sensors:
        if sensor.kind == "rapl" and sensor.name.startswith("package"):
            return PowerMeter("rapl", _counter(system, sensor.path, clock))
    return None


def _again(system: System, sensor: PowerSensor) -> float | None:
    found = (s for s in read_power(system) if (s.kind, s.path) == (sensor.kind, sensor.path))
    return next((s.power_w for s in found), None)


def _battery(system: System) -> Callable[[], float | None] | None:
    """A reader of a battery that discharges (Linux, Documentation/ABI/testing/sysfs-class-power:
    µA and µV; the sign of the current differs between drivers).
    """
    for folder in system.glob("/sys/class/power_supply/*"):
        if (system.read(f"{folder}/type") or "").strip() != "Battery":
            continue

        def read(folder: str = folder) -> float | None:
            if (system.read(f"{folder}/status") or "").strip() != "Discharging":
                return None
            amps = read_number(system, f"{folder}/current_now")
            volts = read_number(system, f"{folder}/voltage_now")
            return None if amps is None or volts is None else abs(amps * volts) / 1e12

        if read() is not None:
            return read
    return None


def _counter(system: System, path: str, clock: Callable[[], float]) -> Callable[[], float | None]:
    """Watts since the previous look at an energy counter in µJ; None when it wrapped."""
    last: tuple[float, float] | None = None

    def read() -> float | None:
        nonlocal last
        if (energy := read_number(system, path)) is None:
            return None
        before, last = last, (clock(), energy / 1e6)
        if before is None or last[1] < before[1] or last[0] <= before[0]:
            return None
        return (last[1] - before[1]) / (last[0] - before[0])

    return read
