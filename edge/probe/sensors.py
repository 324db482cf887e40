"""Heat, throttling and power. A reading is None where no sensor answers: 0 °C and 0 W are
readings.
"""

import re
from dataclasses import dataclass

from boardfit.edge.probe.system import System, parse_number, read_number

# Bits of `vcgencmd get_throttled`. Source: https://www.raspberrypi.com/documentation/computers/
# os.html#get_throttled
THROTTLE_BITS = {
    0: "under-voltage now", 1: "clock capped now", 2: "throttled now",
    3: "soft temperature limit now", 16: "under-voltage has occurred", 17: "clock was capped",
    18: "throttling has occurred", 19: "soft temperature limit has occurred",
}  # fmt: skip
_THROTTLED = re.compile(r"throttled=0x([0-9a-fA-F]{1,8})\b")
_TEMP = re.compile(r"temp=(-?\d{1,3}(?:\.\d{1,3})?)'C")
_RAIL = re.compile(
    r"^\s*(\w{1,32})_([AV])\s+(?:current|volt)\(\d{1,3}\)=(\d{1,6}(?:\.\d{1,12})?)[AV]\s*$",
    re.MULTILINE,
)
# What the rails do not see, fitted against a meter at the socket: total = rails × 1.1451 + 0.5879 W
# (https://pitop.hongjunwu.com, Raspberry Pi 5).
_PI5_SCALE, _PI5_OFFSET_W = 1.1451, 0.5879
_TEGRA_POWER = re.compile(r"\b((?:VDD|VIN|POM)_?\w{0,31}) (\d{1,7})(?:mW)?/(\d{1,7})(?:mW)?")
# Sensors of a SoC that does not exist answer with these (Linux thermal: THERMAL_TEMP_INVALID).
_MILLIDEGREES = range(-55_000, 200_000)


@dataclass(frozen=True)
class HeatSensor:
    """A temperature sensor: its kernel name, its file, and what it read (None: no answer)."""

    name: str
    path: str
    temp_c: float | None


@dataclass(frozen=True)
class PowerSensor:
    """A power sensor: `kind` is `ina3221` (or another hwmon chip), `rapl`, `pmic`. `power_w` is
    None for counters, which need two looks, and for sensors without an answer.
    """

    kind: str
    name: str
    path: str
    power_w: float | None


def parse_throttled(text: str | None) -> int | None:
    """`throttled=0x50005` → the bits; None if the firmware reports nothing."""
    match = _THROTTLED.search(text or "")
    return int(match[1], 16) if match else None


def describe_throttled(bits: int | None) -> list[str]:
    """The set bits in words; empty for 0 and for unknown."""
    return [text for bit, text in THROTTLE_BITS.items() if bits is not None and bits >> bit & 1]


def parse_vcgencmd_temp(text: str | None) -> float | None:
    """`temp=39.2'C` → °C."""
    match = _TEMP.search(text or "")
    return float(match[1]) if match and int(float(match[1]) * 1000) in _MILLIDEGREES else None


def parse_pmic(text: str | None) -> dict[str, float]:
    """`vcgencmd pmic_read_adc` → rail → watts, where a rail reports both current and voltage."""
    amps: dict[str, float] = {}
    volts: dict[str, float] = {}
    for rail, unit, value in _RAIL.findall(text or ""):
        (amps if unit == "A" else volts)[rail] = float(value)
    return {rail: amps[rail] * volts[rail] for rail in amps if rail in volts}


def pi5_total_w(rails: dict[str, float]) -> float | None:
    """Watts at the socket estimated from a Raspberry Pi 5's rails; None without rails."""
    return sum(rails.values()) * _PI5_SCALE + _PI5_OFFSET_W if rails else None


def parse_tegra_power(line: str) -> dict[str, float]:
    """One line of NVIDIA's tegrastats, of any Jetson: rail → watts."""
    return {name: int(now) / 1000 for name, now, _ in _TEGRA_POWER.findall(line)}


def parse_millidegrees(text: str | None) -> float | None:
    """A thermal zone's `temp` → °C; None outside of what silicon survives."""
    value = parse_number(text)
    return value / 1000 if value is not None and value in _MILLIDEGREES else None


def read_heat(system: System) -> tuple[HeatSensor, ...]:
    """Thermal zones that the kernel lists, in order; the firmware's own where it lists none."""
    sensors = []
    for zone in sorted(system.glob("/sys/class/thermal/thermal_zone*"), key=_natural):
        name = (system.read(f"{zone}/type") or "").strip() or zone.rsplit("/", 1)[1]
        path = f"{zone}/temp"
        sensors.append(HeatSensor(name, path, parse_millidegrees(system.read(path))))
    firmware = parse_vcgencmd_temp(system.output("temp"))
    if not sensors and firmware is not None:
        sensors.append(HeatSensor("firmware", "vcgencmd measure_temp", firmware))
    return tuple(sensors)


def read_power(system: System) -> tuple[PowerSensor, ...]:
    """hwmon chips with power or voltage × current (INA3221 on Jetsons), RAPL, the Pi 5's PMIC."""
    found: list[PowerSensor] = []
    for chip in sorted(system.glob("/sys/class/hwmon/hwmon*"), key=_natural):
        found += _read_hwmon(system, chip)
    for zone in sorted(system.glob("/sys/class/powercap/intel-rapl:*"), key=_natural):
        name = (system.read(f"{zone}/name") or "").strip()
        if name:  # `energy_uj` is readable by root alone since CVE-2020-8694
            found.append(PowerSensor("rapl", name, f"{zone}/energy_uj", None))
    if not found:  # Jetsons whose sensors are no hwmon chips: Nano, TX2 and older
        rails = parse_tegra_power(system.output("tegrastats") or "")
        found += [PowerSensor("tegrastats", n, "tegrastats", w) for n, w in rails.items()]
    rails = parse_pmic(system.output("pmic"))
    if rails:
        total = pi5_total_w(rails)
        found.append(PowerSensor("pmic", "board, from rails", "vcgencmd pmic_read_adc", total))
    return tuple(found)


def _read_hwmon(system: System, chip: str) -> list[PowerSensor]:
    """Channels of one chip. Units: Linux, Documentation/hwmon/sysfs-interface.rst (mV, mA, µW)."""
    kind = (system.read(f"{chip}/name") or "").strip() or "hwmon"
    sensors = []
    for path in system.glob(f"{chip}/power*_input"):
        label = system.read(path.replace("_input", "_label")) or path.rsplit("/", 1)[1]
        micro = read_number(system, path)
        watts = None if micro is None or micro < 0 else micro / 1e6
        sensors.append(PowerSensor(kind, label.strip(), path, watts))
    for path in system.glob(f"{chip}/curr*_input"):
        number = path.rsplit("/curr", 1)[1].removesuffix("_input")
        voltage_path = f"{chip}/in{number}_input"
        # INA3221 counts in1…in3 beside curr1…curr3; in4…in6 are the shunts' own voltages.
        amps, volts = read_number(system, path), read_number(system, voltage_path)
        label = (system.read(f"{chip}/in{number}_label") or "").strip()
        if system.read(voltage_path) is None:
            continue
        watts = None if amps is None or volts is None else amps * volts / 1e6
        sensors.append(PowerSensor(kind, label or f"channel {number}", path, watts))
    return sensors


def _natural(path: str) -> tuple[str, int]:
    """hwmon2 before hwmon10."""
    match = re.search(r"(\d{1,9})$", path)
    return (path[: match.start()], int(match[1])) if match else (path, -1)
