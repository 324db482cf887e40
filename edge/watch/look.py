"""One look at a board: sensors, memory, and the processes that publish a page. Everything is read
through a `System`, so that this machine and a board behind ssh go through the same parsers.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from boardfit.edge.bench.heat import HeatReader
from boardfit.edge.bench.sampler import parse_pss, parse_status
from boardfit.edge.probe.cpu import parse_cpuinfo
from boardfit.edge.probe.memory import parse_meminfo
from boardfit.edge.probe.sensors import describe_throttled
from boardfit.edge.probe.system import LocalSystem, System, first_text
from boardfit.edge.process.live import PAGE_BYTES, Page, own_folders, parse_page, parse_start_ticks

# Linux, Documentation/accounting/psi.rst
_PRESSURE = re.compile(r"^some avg10=(\d{1,3}\.\d{1,2}) ", re.MULTILINE)


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
            memory = read_process_memory(system, page.pid)
        if memory is not None:
            found[page.pid] = (page, memory)
    return tuple(found[pid] for pid in sorted(found))


def read_process_memory(system: System, pid: int) -> ProcessMemory:
    """Memory by kind from /proc/PID/status and smaps_rollup."""
    status = system.read(f"/proc/{pid}/status") or ""
    rollup = system.read(f"/proc/{pid}/smaps_rollup") or ""
    return ProcessMemory(**{"pss_bytes": parse_pss(rollup), **parse_status(status)})


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
