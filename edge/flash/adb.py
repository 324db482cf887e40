"""`adb://SERIAL/path`: a phone or board behind Debian's (or Google's) `adb`.

Files go through its shell, as over ssh: `adb push` keeps nothing of a file that was cut short.
"""

import re
import shlex

from boardfit.edge.disk.data_files import find_trouble
from boardfit.edge.errors import DeviceUnreachableError, EdgeError
from boardfit.edge.flash.session import Channel, Done
from boardfit.edge.flash.shell_files import ShellBoard
from boardfit.edge.flash.target import FlashTarget
from boardfit.edge.process.child import TimeoutExpired, find_program
from boardfit.edge.process.listener import run_limited
from boardfit.edge.units import printable

_START_S = 60
_MAX_WORDS = 1 << 20
_NETWORK_SERIAL = re.compile(r".+:\d+")
_TROUBLE = ("device offline", "device unauthorized", "device still", "no devices", "not found",
            "protocol fault", "closed", "cannot connect", "failed to")  # fmt: skip


class AdbChannel(Channel):
    def __init__(self, target: FlashTarget) -> None:
        self.place = str(target)
        if find_program("adb") is None:
            raise DeviceUnreachableError(
                "adb is not installed",
                next_step="apt install adb, and allow USB debugging on the phone",
            )
        wanted = target.board.host if target.board else None
        self._device = ["-s", wanted] if wanted else []
        if wanted and _NETWORK_SERIAL.fullmatch(wanted):
            self._adb("connect", wanted)
        done = self._adb(*self._device, "get-serialno")
        if done.rc != 0:
            raise self._explain(done.err, wanted)
        self._device = ["-s", done.text.strip()]
        if wanted is None:
            self.place = f"adb://{done.text.strip()}{target.folder}"
        if (done := self._adb(*self._device, "get-state")).text.strip() != "device":
            raise self._explain(done.err or done.text, wanted)

    def _adb(self, *arguments: str) -> Done:
        try:
            got = run_limited(["adb", *arguments], "adb", timeout_s=_START_S, most_bytes=_MAX_WORDS)
        except TimeoutExpired:
            raise DeviceUnreachableError(
                f"adb {arguments[-1]} did not answer within {_START_S} s",
                next_step="adb kill-server, then try again",
            ) from None
        return Done.from_process(got)

    def _explain(self, output: str, wanted: str | None) -> EdgeError:
        """The error for what adb complains of, with the devices that it lists."""
        listed = [line.split()[:2] for line in self._adb("devices").text.splitlines()[1:]]
        shown = ", ".join(printable(" ".join(words), 80) for words in listed if words) or "none"
        last = printable((output.strip().splitlines() or ["adb prints nothing"])[-1], 200)
        words = {"wanted": repr(wanted or "any"), "shown": shown, "last": last}
        trouble = find_trouble(__file__, "adb_troubles.toml", output, **words)
        assert trouble is not None  # its last row is for every state
        return trouble

    def argv(self, script: str) -> list[str]:
        return ["adb", *self._device, "shell", "-T", f"exec sh -c {shlex.quote(script)}"]

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
