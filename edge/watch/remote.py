"""A board behind ssh or adb, watched by a small shell loop there over one connection."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from boardfit.edge.bench.heat import HeatReader
from boardfit.edge.errors import DeviceUnreachableError
from boardfit.edge.probe.remote import Target, probe_script, read_script, shell_command
from boardfit.edge.probe.system import MAX_DUMP_BYTES, CapturedSystem, parse_dump
from boardfit.edge.process.child import PIPE, TimeoutExpired, find_program, start_child
from boardfit.edge.units import printable
from boardfit.edge.watch.look import Look, read_machine, read_processes

_PAGES = ("/run/user/*/boardfit/*.json", "/dev/shm/*/*.json", "/tmp/*/*.json")


class WatchedBoard:
    """A source of looks: one shell loop on the board."""

    def __init__(self, target: Target, interval_s: float) -> None:
        """Raises DeviceUnreachableError if the program that connects is not installed."""
        self._target = target
        command = shell_command(target)
        if find_program(command[0]) is None:
            raise DeviceUnreachableError(f"{command[0]} is not installed")
        self._mark = secrets.token_hex(16)
        self._process = start_child(command, stdin=PIPE)
        assert self._process.stdin is not None
        functions = probe_script(self._mark).partition("f /proc/cpuinfo")[0]
        path = Path(__file__).with_name("watch_board.sh")
        loop = read_script(path, mark=self._mark, interval=f"{interval_s:g}")
        with contextlib.suppress(BrokenPipeError):  # its own words come with the first look
            self._process.stdin.write((functions + loop).encode())
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
        output = self._process.stderr.read() if self._process.stderr else b""
        words = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
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
