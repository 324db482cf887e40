"""A board behind ssh or adb, read by a small POSIX shell script; the board needs no Python.

The system's own OpenSSH does the talking, so that keys, agents, jump hosts and ~/.ssh/config work
as the user has set them up. It never asks for a password, and never skips the check of host keys.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from boardfit.edge.errors import DeviceUnreachableError, UsageError
from boardfit.edge.probe.system import MAX_DUMP_BYTES, CapturedSystem, parse_dump
from boardfit.edge.process.child import TimeoutExpired, find_program
from boardfit.edge.process.listener import run_limited
from boardfit.edge.units import printable

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39}")
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,127}")
_CONNECT_S, _TOTAL_S = 10, 60

# Prints every file and command output that a probe can use, each behind a line with the mark. Only
# reads. `head -c` bounds each text; toybox, busybox and coreutils all have it.
# The device tree's texts end in NUL, which a shell variable cannot hold.
SCRIPT = r"""
M=@MARK@
f() {
  for p in "$@"; do
    [ -f "$p" ] && [ -r "$p" ] || continue
    t=$(head -c 262144 "$p" 2>/dev/null | tr '\000' '\n') || continue
    printf '%s file %s\n%s\n\n' "$M" "$p" "$t"
  done
}
o() {
  n=$1; shift
  command -v "$1" >/dev/null 2>&1 || return 0
  t=$("$@" 2>/dev/null </dev/null | head -c 262144) || return 0
  printf '%s output %s\n%s\n\n' "$M" "$n" "$t"
}
f /proc/cpuinfo /proc/meminfo /proc/device-tree/model /proc/self/mountinfo /proc/self/cgroup
f /etc/os-release /sys/firmware/devicetree/base/model
f /proc/device-tree/compatible /sys/firmware/devicetree/base/compatible
f /sys/devices/system/cpu/online /sys/devices/system/cpu/present
f /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq
f /sys/devices/system/cpu/cpu0/cache/index*/size
f /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp
f /sys/class/hwmon/hwmon*/name /sys/class/hwmon/hwmon*/*_label
f /sys/class/hwmon/hwmon*/in*_input /sys/class/hwmon/hwmon*/curr*_input
f /sys/class/hwmon/hwmon*/power*_input
f /sys/class/powercap/intel-rapl:*/name
f /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name /sys/class/dmi/id/board_name
f /sys/block/*/device/type /sys/block/*/queue/rotational
while IFS=: read -r _ c g; do
  case "$c" in
    '') r=/sys/fs/cgroup ;;
    memory|memory,*|*,memory|*,memory,*) r=/sys/fs/cgroup/memory ;;
    *) continue ;;
  esac
  n=0
  while [ $n -lt 32 ]; do
    g=${g%/}
    f "$r$g/memory.max" "$r$g/memory.current" "$r$g/memory.stat"
    f "$r$g/memory.limit_in_bytes" "$r$g/memory.usage_in_bytes"
    [ -n "$g" ] || break
    g=${g%/*}
    n=$((n + 1))
  done
done < /proc/self/cgroup
o throttled vcgencmd get_throttled
o temp vcgencmd measure_temp
o pmic vcgencmd pmic_read_adc
o getprop getprop
command -v tegrastats >/dev/null 2>&1 &&
  o tegrastats sh -c 'timeout 3 tegrastats --interval 500 | head -n 1'
o uname uname -srm
o hostname uname -n
o libc getconf GNU_LIBC_VERSION
o python python3 --version
o long_bit getconf LONG_BIT
o elf_class od -An -tu1 -j4 -N1 /proc/self/exe
printf '%s end\n' "$M"
"""


@dataclass(frozen=True)
class Target:
    """Where a board is: `scheme` is `ssh` or `adb`; for adb, `host` is the serial number."""

    scheme: str
    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if self.scheme == "ssh" and ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}{f':{self.port}' if self.port else ''}"


def parse_target(text: str) -> Target:
    """`ssh://user@host:22` or `adb://SERIAL`. Raises UsageError for anything else; a host or user
    that could be taken for an option of ssh is refused.
    """
    shape = "ssh://user@host[:port] or adb://serial"
    scheme, separator, rest = text.partition("://")
    if not text.isprintable():  # urlsplit would drop a newline in silence
        raise UsageError(f"not a place of a board: {printable(text)!r}; expected {shape}")
    if not separator or scheme not in ("ssh", "adb"):
        raise UsageError(f"not a place of a board: {printable(text)!r}; expected {shape}")
    if scheme == "adb":
        if not _SERIAL.fullmatch(rest):
            raise UsageError(
                f"not a serial number: {printable(rest)!r}", next_step="adb devices lists them"
            )
        return Target("adb", rest)
    try:
        parts = urlsplit(text)
        host, user, port = parts.hostname or "", parts.username, parts.port
    except ValueError as error:
        raise UsageError(f"{printable(text)}: {error}; expected {shape}") from None
    if parts.password is not None:
        raise UsageError(
            "a password in an address ends up in logs and histories; boardfit takes none",
            next_step="ssh-copy-id the public key to the board",
        )
    extra = parts.path.strip("/") or parts.query or parts.fragment
    if not _HOST.fullmatch(host) or extra or (user is not None and not _USER.fullmatch(user)):
        raise UsageError(f"not a place of a board: {printable(text)!r}; expected {shape}")
    return Target("ssh", host, user, port)


def ssh_command(target: Target) -> list[str]:
    """OpenSSH's command line, the script to come on stdin."""
    command = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}"]
    if target.port is not None:
        command += ["-p", str(target.port)]
    if target.user is not None:
        command += ["-l", target.user]
    return [*command, "--", target.host, "sh", "-s"]


def adb_command(target: Target) -> list[str]:
    """adb's command line, the script to come on stdin."""
    return ["adb", "-s", target.host, "shell", "-T", "sh"]


def capture(target: Target) -> CapturedSystem:
    """The board's system as text.

    Raises DeviceUnreachableError with the transport's own words when the board does not answer,
    DeviceError when it sends too much, InputError when what it sent is no board's.
    """
    command = ssh_command(target) if target.scheme == "ssh" else adb_command(target)
    if find_program(command[0]) is None:
        raise DeviceUnreachableError(
            f"{command[0]} is not installed",
            next_step="apt install openssh-client"
            if command[0] == "ssh"
            else "apt install adb, and allow USB debugging on the phone",
        )
    mark = secrets.token_hex(16)
    script = SCRIPT.replace("@MARK@", mark).encode()
    try:
        done = run_limited(
            command, str(target), input=script, timeout_s=_TOTAL_S, most_bytes=MAX_DUMP_BYTES
        )
    except TimeoutExpired:
        raise DeviceUnreachableError(
            f"{target} did not answer within {_TOTAL_S} s",
            next_step=_suggest_step(target),
        ) from None
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        why = printable(lines[-1]) if lines else f"{command[0]} left with {done.returncode}"
        raise DeviceUnreachableError(
            f"{target} cannot be reached: {why}", next_step=_suggest_step(target)
        )
    text = done.stdout[:MAX_DUMP_BYTES].decode("utf-8", "replace")
    return parse_dump(text, mark)


def _suggest_step(target: Target) -> str:
    if target.scheme == "adb":
        return "adb devices must list the phone as `device`"
    port = f" -p {target.port}" if target.port else ""
    user = f"{target.user}@" if target.user else ""
    return f"`ssh{port} {user}{target.host} true` must work without asking for anything"
