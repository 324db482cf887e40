"""Temperature, clock and throttle bits while a bench runs, and for `edge watch`."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from boardfit.edge.bench.power import PowerMeter, find_meter
from boardfit.edge.probe.sensors import parse_millidegrees, parse_throttled, parse_vcgencmd_temp
from boardfit.edge.probe.system import LocalSystem, System, read_number
from boardfit.edge.types import HeatSample

# The firmware's own file; the vcgencmd program reads the same bits.
FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
_BITS = re.compile(r"[0-9a-fA-F]{1,8}")


class HeatReader:
    """The sensors of a system: looked for once, read again and again. The hottest thermal zone, the
    fastest core's clock, the Raspberry Pi firmware's throttle bits, and the power meter.
    """

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
