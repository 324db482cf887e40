"""One look at a board: sensors, memory, and the processes that publish a page. Everything is read
through a `System`, so that this machine and a board behind ssh go through the same parsers.
"""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from boardfit.edge.bench.heat import HeatReader
from boardfit.edge.bench.sampler import parse_pss, parse_status
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.errors import DeviceUnreachableError
from boardfit.edge.probe.cpu import parse_cpuinfo
from boardfit.edge.probe.memory import parse_meminfo
from boardfit.edge.probe.remote import Target, probe_script, shell_command
from boardfit.edge.probe.sensors import describe_throttled
from boardfit.edge.probe.system import (
    MAX_DUMP_BYTES,
    CapturedSystem,
    LocalSystem,
    System,
    first_text,
    parse_dump,
)
from boardfit.edge.process.child import PIPE, TimeoutExpired, find_program, start_child
from boardfit.edge.process.live import PAGE_BYTES, Page, own_folders, parse_page, parse_start_ticks
from boardfit.edge.units import printable

# Linux, Documentation/accounting/psi.rst
_PRESSURE = re.compile(r"^some avg10=(\d{1,3}\.\d{1,2}) ", re.MULTILINE)


_PAGES = ("/run/user/*/boardfit/*.json", "/dev/shm/*/*.json", "/tmp/*/*.json")


@dataclass(frozen=True)
class ProcessMemory:
    """A process's memory by kind, in bytes."""

    rss_bytes: int | None = None
    anon_bytes: int | None = None
    file_bytes: int | None = None
    pss_bytes: int | None = None
    swap_bytes: int | None = None


@dataclass(frozen=True)
class Machine:
    """The board now. `throttled` are the Raspberry Pi firmware's bits; `pressure` is the percentage
    of the last ten seconds in which something waited for memory (PSI).
    """

    name: str | None = None
    n_cores: int | None = None
    temp_c: float | None = None
    clock_hz: float | None = None
    throttled: int | None = None
    power_w: float | None = None
    power_kind: str | None = None
    load_1min: float | None = None
    ram_bytes: int | None = None
    available_bytes: int | None = None
    swap_used_bytes: int | None = None
    pressure: float | None = None


@dataclass(frozen=True)
class Look:
    """Everything at one moment, processes by their number."""

    machine: Machine
    processes: tuple[tuple[Page, ProcessMemory], ...]


class Here:
    """This machine."""

    def __init__(self) -> None:
        self._system = LocalSystem()
        self._sensors = HeatReader(self._system)

    def read(self) -> Look:
        machine = read_machine(self._system, self._sensors)
        if machine.ram_bytes is None:  # no /proc
            memory = psutil.virtual_memory()
            machine = Machine(
                n_cores=psutil.cpu_count(),
                load_1min=psutil.getloadavg()[0],
                ram_bytes=memory.total,
                available_bytes=memory.available,
                swap_used_bytes=psutil.swap_memory().used,
            )
        return Look(machine, read_processes(self._system, local_pages(), _resident))

    def close(self) -> None:
        pass


def _resident(pid: int) -> ProcessMemory | None:
    try:
        return ProcessMemory(rss_bytes=psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def local_pages() -> list[str]:
    """The texts of all pages that this user may read: root sees everybody's."""
    folders = set(own_folders())
    if hasattr(os, "getuid") and os.getuid() == 0:
        for base, pattern in (("/run/user", "*/boardfit"), ("/dev/shm", "boardfit-*")):
            folders.update(Path(base).glob(pattern))
    texts = []
    for folder in sorted(folders):
        with contextlib.suppress(OSError):
            texts += [_page_text(path) for path in sorted(folder.glob("*.json"))]
    return [text for text in texts if text]


def _page_text(path: Path) -> str:
    """A page's text, or nothing. In a shared folder any user may have put a pipe or a link."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        handle = os.open(path, flags)
    except OSError:
        return ""
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        return file.read(PAGE_BYTES).decode("utf-8", "replace")


def read_processes(
    system: System,
    pages: Sequence[str],
    elsewhere: Callable[[int], ProcessMemory | None] = lambda pid: None,
) -> tuple[tuple[Page, ProcessMemory], ...]:
    """The processes behind pages that are still there; `elsewhere` gives memory without /proc."""
    found: dict[int, tuple[Page, ProcessMemory]] = {}
    for text in pages:
        page = parse_page(text)
        if page is None:
            continue
        if page.started is None:
            memory = elsewhere(page.pid)
        elif parse_start_ticks(system.read(f"/proc/{page.pid}/stat")) != page.started:
            continue  # killed: another process has its number, or none
        else:
            status, rollup = (
                system.read(f"/proc/{page.pid}/{name}") or "" for name in ("status", "smaps_rollup")
            )
            memory = ProcessMemory(**{"pss_bytes": parse_pss(rollup), **parse_status(status)})
        if memory is not None:
            found[page.pid] = (page, memory)
    return tuple(found[pid] for pid in sorted(found))


def read_machine(system: System, sensors: HeatReader) -> Machine:
    """The board's sensors and memory."""
    heat, meter = sensors.read(), sensors.meter
    known = parse_meminfo(system.read("/proc/meminfo") or "")
    swap = (known.get("SwapTotal"), known.get("SwapFree"))
    load = (system.read("/proc/loadavg") or "").split(" ")[0]
    pressure = _PRESSURE.search(system.read("/proc/pressure/memory") or "")
    names = ("/proc/device-tree/model", "/sys/class/dmi/id/product_name")
    return Machine(
        name=first_text(system, names),
        n_cores=len(parse_cpuinfo(system.read("/proc/cpuinfo") or "")) or None,
        temp_c=heat.temp_c,
        clock_hz=heat.clock_hz,
        throttled=heat.throttled,
        power_w=heat.power_w,
        power_kind=meter.kind if meter and heat.power_w is not None else None,
        load_1min=float(load) if re.fullmatch(r"\d{1,6}\.\d{1,3}", load) else None,
        ram_bytes=known.get("MemTotal"),
        available_bytes=known.get("MemAvailable"),
        swap_used_bytes=None if None in swap else (swap[0] or 0) - (swap[1] or 0),
        pressure=float(pressure[1]) if pressure else None,
    )


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
        loop = read_text_beside(
            __file__, "watch_board.sh", mark=self._mark, interval=f"{interval_s:g}"
        )
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


def to_record(look: Look, rates: dict[int, float | None]) -> dict[str, Any]:
    """A look as plain data for `--json`; `rates` are decode tokens/s by process."""
    machine = asdict(look.machine)
    machine["throttled_means"] = describe_throttled(look.machine.throttled)
    return {
        "kind": "boardfit-watch",
        "schema": 1,
        "machine": machine,
        "processes": [
            {**asdict(page), "decode_tps": rates.get(page.pid), "memory": asdict(memory)}
            for page, memory in look.processes
        ],
    }
