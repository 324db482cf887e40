"""`adb://SERIAL/path`: a phone or board behind Debian's (or Google's) `adb`.

Files go through its shell, as over ssh: `adb push` keeps nothing of a file that was cut short.
"""

import re
import shlex
from dataclasses import dataclass

from boardfit.edge.disk.data_files import find_trouble
from boardfit.edge.errors import DeviceUnreachableError, EdgeError, UsageError
from boardfit.edge.flash.session import Done
from boardfit.edge.flash.shell_files import ShellBoard
from boardfit.edge.flash.target import FlashTarget
from boardfit.edge.process.child import TimeoutExpired, find_program
from boardfit.edge.process.listener import run_limited
from boardfit.edge.units import printable

_START_S = 60
_MAX_WORDS = 1 << 20
_LINE = re.compile(r"^(\S+)\s+(device|offline|unauthorized|recovery|sideload|bootloader|host|"
                   r"authorizing|connecting|no permissions)\b(.*)$")  # fmt: skip
_NETWORK_SERIAL = re.compile(r".+:\d+")
_TROUBLE = ("device offline", "device unauthorized", "device still", "no devices", "not found",
            "protocol fault", "closed", "cannot connect", "failed to")  # fmt: skip


@dataclass(frozen=True)
class Device:
    """One line of `adb devices -l`."""

    serial: str
    state: str
    details: str

    def __str__(self) -> str:
        model = re.search(r"model:(\S+)", self.details)
        return f"{self.serial} ({self.state}{', ' + model[1] if model else ''})"


def parse_devices(text: str) -> list[Device]:
    """`adb devices -l` → devices; lines that are none are left out."""
    lines = (_LINE.match(line.strip()) for line in text.splitlines())
    return [Device(m[1], m[2], m[3].strip()) for m in lines if m]


def choose_device(devices: list[Device], serial: str | None) -> Device:
    """The device that is meant, ready to be used. Raises UsageError when several could be,
    DeviceUnreachableError when it is missing, offline or has not allowed this computer.
    """
    shown = ", ".join(printable(str(device), 80) for device in devices) or "none"
    if serial is None:
        if len(devices) > 1:
            raise UsageError(
                f"several devices are connected: {shown}",
                next_step=f"name one: adb://{devices[0].serial}",
            )
        found = devices[0] if devices else None
    else:
        found = next((device for device in devices if device.serial == serial), None)
    if found is None:
        raise DeviceUnreachableError(
            f"no device {printable(serial)!r}; connected: {shown}"
            if serial
            else "no device is connected",
            next_step="allow USB debugging on it (Settings, Developer options) and plug it in",
        )
    if found.state != "device":
        words = {"serial": found.serial, "state": found.state}
        trouble = find_trouble(__file__, "adb_troubles.toml", found.state, **words)
        assert trouble is not None  # its last row is for every state
        raise trouble
    return found


class AdbChannel:
    def __init__(self, target: FlashTarget) -> None:
        self.place = str(target)
        if find_program("adb") is None:
            raise DeviceUnreachableError(
                "adb is not installed",
                next_step="apt install adb, and allow USB debugging on the phone",
            )
        wanted = target.board.host if target.board else None
        devices = self._devices()
        if wanted and _NETWORK_SERIAL.fullmatch(wanted) and wanted not in {
            device.serial for device in devices
        }:  # fmt: skip
            self._adb("connect", wanted)
            devices = self._devices()
        self.serial = choose_device(devices, wanted).serial
        if target.board is None:
            self.place = f"adb://{self.serial}{target.folder}"

    def _adb(self, *arguments: str) -> Done:
        try:
            got = run_limited(["adb", *arguments], "adb", timeout_s=_START_S, most_bytes=_MAX_WORDS)
        except TimeoutExpired:
            raise DeviceUnreachableError(
                f"adb {arguments[0]} did not answer within {_START_S} s",
                next_step="adb kill-server, then try again",
            ) from None
        return Done.from_process(got)

    def _devices(self) -> list[Device]:
        done = self._adb("devices", "-l")
        if done.rc != 0:
            raise DeviceUnreachableError(
                f"adb does not start: {printable(done.err.strip())}",
                next_step="adb start-server shows why",
            )
        return parse_devices(done.text)

    def argv(self, script: str) -> list[str]:
        return ["adb", "-s", self.serial, "shell", "-T", f"exec sh -c {shlex.quote(script)}"]

    def find_connection_error(self, done: Done) -> EdgeError | None:
        lines = done.err.strip().splitlines()
        last = lines[-1] if lines else ""
        if not last.startswith(("error:", "adb:")) or not any(t in last for t in _TROUBLE):
            return None
        return DeviceUnreachableError(
            f"{self.place} was lost: {printable(last)}",
            next_step="adb devices must list it as `device`; then run the same command again",
        )


class AdbBoard(ShellBoard):
    def __init__(self, target: FlashTarget) -> None:
        super().__init__(AdbChannel(target), target.folder)
