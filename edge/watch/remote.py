"""A board behind ssh or adb, watched by a small shell loop there; the board needs no Python for it.

One connection stays open. Each round prints the files that a look reads (as `edge probe` does it),
ends with a mark and sleeps.
"""

from __future__ import annotations

import contextlib
import secrets

from boardfit.edge.bench.heat import HeatReader
from boardfit.edge.errors import DeviceUnreachableError
from boardfit.edge.probe.remote import SCRIPT, Target, adb_command, ssh_command
from boardfit.edge.probe.system import MAX_DUMP_BYTES, CapturedSystem, parse_dump
from boardfit.edge.process.child import PIPE, TimeoutExpired, find_program, start_child
from boardfit.edge.units import printable
from boardfit.edge.watch.look import Look, read_machine, read_processes

# The functions f and o come from the probe's script. `[ -f` keeps it from opening a pipe.
_LOOP = r"""
while :; do
  for p in /run/user/*/boardfit/*.json /dev/shm/boardfit*/*.json \
      "${TMPDIR:-/tmp}"/boardfit*/*.json; do
    [ -f "$p" ] && { [ -O "${p%/*}" ] || [ "$(id -u)" = 0 ]; } || continue
    f "$p"
    i=${p##*/}; i=${i%.json}
    case "$i" in *[!0-9]*|'') continue ;; esac
    f /proc/$i/stat /proc/$i/status /proc/$i/smaps_rollup
  done
  f /proc/cpuinfo /proc/meminfo /proc/loadavg /proc/pressure/memory /proc/device-tree/model
  f /sys/class/dmi/id/product_name /sys/devices/platform/soc/soc:firmware/get_throttled
  f /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq
  f /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp
  f /sys/class/hwmon/hwmon*/name /sys/class/hwmon/hwmon*/*_label
  f /sys/class/hwmon/hwmon*/in*_input /sys/class/hwmon/hwmon*/curr*_input
  f /sys/class/hwmon/hwmon*/power*_input
  f /sys/class/power_supply/*/type /sys/class/power_supply/*/status
  f /sys/class/power_supply/*/current_now /sys/class/power_supply/*/voltage_now
  o throttled vcgencmd get_throttled
  o temp vcgencmd measure_temp
  o pmic vcgencmd pmic_read_adc
  printf '%s end\n' "$M" || exit
  sleep @INTERVAL@ || exit
done
"""
_PAGES = ("/run/user/*/boardfit/*.json", "/dev/shm/*/*.json", "/tmp/*/*.json")


def loop_script(mark: str, interval_s: float) -> str:
    """The shell program that prints rounds until its reader closes the pipe."""
    functions = SCRIPT.partition("f /proc/cpuinfo")[0]
    loop = _LOOP.replace("@INTERVAL@", f"{interval_s:g}")
    return (functions + loop).replace("@MARK@", mark)


class WatchedBoard:
    """A source of looks: one shell loop on the board."""

    def __init__(self, target: Target, interval_s: float) -> None:
        """Raises DeviceUnreachableError if the program that connects is not installed."""
        self._target = target
        command = ssh_command(target) if target.scheme == "ssh" else adb_command(target)
        if find_program(command[0]) is None:
            raise DeviceUnreachableError(f"{command[0]} is not installed")
        self._mark = secrets.token_hex(16)
        self._process = start_child(command, stdin=PIPE)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its own words come with the first look
            self._process.stdin.write(loop_script(self._mark, interval_s).encode())
            self._process.stdin.close()

    def read(self) -> Look:
        """The next round. Raises DeviceUnreachableError with the transport's own words."""
        assert self._process.stdout is not None
        lines: list[bytes] = []
        size, end = 0, f"{self._mark} end".encode()
        while True:
            line = self._process.stdout.readline(MAX_DUMP_BYTES)
            size += len(line)
            if not line or size > MAX_DUMP_BYTES:
                raise DeviceUnreachableError(f"{self._target} {self._last_words()}")
            lines.append(line)
            if line.rstrip() == end:
                break
        return read_look(parse_dump(b"".join(lines).decode("utf-8", "replace"), self._mark))

    def _last_words(self) -> str:
        self.close()
        output = (
            self._process.stderr.read().decode("utf-8", "replace") if self._process.stderr else ""
        )
        words = [line for line in output.splitlines() if line.strip()]
        return f"was lost: {printable(words[-1])}" if words else "has closed the connection"

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except TimeoutExpired:
            self._process.kill()
            self._process.wait()


def read_look(system: CapturedSystem) -> Look:
    """A round as a look. Counters of energy would need two looks at one system."""
    pages = [system.read(path) or "" for pattern in _PAGES for path in system.glob(pattern)]
    return Look(read_machine(system, HeatReader(system)), read_processes(system, pages))
