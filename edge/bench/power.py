"""Power while a bench runs, from the one sensor that sees most of the board, with its known error.

    pmic     Raspberry Pi 5: sum of the PMIC's rails, fitted to the socket
             (boardfit.edge.probe.sensors)
    ina3221  Jetson: the rail that feeds the board
    battery  phones and laptops that discharge: current × voltage of the fuel gauge, which averages
             over seconds
    rapl     x86: energy counter of the processor's package

What each does not see is in METHODS and printed beside the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from boardfit.edge.probe.sensors import PowerSensor, parse_pmic, pi5_total_w, read_power
from boardfit.edge.probe.system import LocalSystem, System, read_number

METHODS = {
    "pmic": "sum of the PMIC's rails, fitted to the socket; USB devices are not in it",
    "ina3221": "the board's input rail; the supply's own loss is not in it",
    "battery": "fuel gauge, current × voltage; screen and radios are in it",
    "rapl": "the processor's package; memory, board and supply are not in it",
}
# Labels of the rail that feeds the whole board (Jetson Linux developer guide, power monitors).
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "POM_IN")


@dataclass
class PowerMeter:
    """One sensor of a system, read again and again. `kind` is a key of METHODS."""

    kind: str
    _read: Callable[[], float | None]

    def read(self) -> float | None:
        """Watts now; None where the sensor did not answer, or a counter has no first look yet."""
        return self._read()


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
    last: list[tuple[float, float]] = []

    def read() -> float | None:
        energy = read_number(system, path)
        if energy is None:
            return None
        now, before = (clock(), energy / 1e6), last[-1] if last else None
        last[:] = [now]
        if before is None or now[1] < before[1] or now[0] <= before[0]:
            return None
        return (now[1] - before[1]) / (now[0] - before[0])

    return read
