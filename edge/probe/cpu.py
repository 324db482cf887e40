"""CPU cores and their instruction sets, from the text of /proc/cpuinfo."""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boardfit.device_profiles.profile import CpuCluster
from boardfit.device_profiles.toml_parser import decode_toml
from boardfit.edge.disk.data_files import read_text_beside

_INDEX = re.compile(r"[0-9]{1,4}")


@functools.cache
def read_names() -> dict[str, Any]:
    """The kernel's names of cores and features → ours."""
    return decode_toml(read_text_beside(__file__, "cpu_names.toml"))


@dataclass(frozen=True)
class CpuCore:
    """One online logical processor. `core_key` is equal for hardware threads of one core."""

    index: int
    core: str
    isa: frozenset[str]
    clock_hz: float | None
    core_key: tuple[str, str] | None


def parse_cpuinfo(text: str) -> tuple[CpuCore, ...]:
    """Online processors in order, on arm64, x86 and 32-bit Arm. Cores of the last get no `neon`
    flag: the engine's 64-bit kernels cannot run under it.
    """
    cores = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields[key.strip().lower()] = value.strip()
        if not _INDEX.fullmatch(fields.get("processor", "")):
            continue
        cores.append(_parse_core(fields))
    return tuple(cores)


def _parse_core(fields: Mapping[str, str]) -> CpuCore:
    flags = (fields.get("features") or fields.get("flags") or "").split()
    known = read_names()["features"]
    physical, core_id = fields.get("physical id"), fields.get("core id")
    return CpuCore(
        index=int(fields["processor"]),
        core=_core_name(fields),
        isa=frozenset(known[flag] for flag in flags if flag in known),
        clock_hz=_megahertz(fields.get("cpu mhz")),
        core_key=(physical, core_id) if physical is not None and core_id is not None else None,
    )


def _core_name(fields: Mapping[str, str]) -> str:
    try:
        implementer = int(fields["cpu implementer"], 16)
        part = int(fields["cpu part"], 16)
    except (KeyError, ValueError):
        return fields.get("model name", "unknown")
    known: str | None = read_names()["arm"].get(f"{implementer:#x}", {}).get(f"{part:#x}")
    return known or f"arm-{implementer:#x}-{part:#x}"


def _megahertz(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value * 1e6 if 0 < value < 1e6 and math.isfinite(value) else None


def find_field(text: str, *names: str) -> str | None:
    """The first value in /proc/cpuinfo of these names. Raspberry Pis have a `Model`."""
    match = re.search(rf"^(?:{'|'.join(names)})[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
    return match[1].strip() if match else None


def group_clusters(
    cores: tuple[CpuCore, ...],
    max_clock_hz: Mapping[int, float] | None = None,
    usable: frozenset[int] | None = None,
) -> tuple[CpuCluster, ...]:
    """Equal cores together. `max_clock_hz` is each processor's highest clock from cpufreq, better
    than the momentary one in cpuinfo; `usable` the processors that this process may run on.
    Hardware threads of one core count once: decode waits for memory, a second one gains nothing.
    """
    clocks = max_clock_hz or {}
    counts: dict[tuple[str, frozenset[str], float | None], int] = {}
    seen: set[tuple[str, str]] = set()
    for core in cores:
        if usable is not None and core.index not in usable:
            continue
        if core.core_key is not None:
            if core.core_key in seen:
                continue
            seen.add(core.core_key)
        clock = clocks.get(core.index, core.clock_hz)
        # Virtual machines report clocks that differ in the last digits from core to core.
        key = (core.core, core.isa, round(clock, -8) if clock else None)
        counts[key] = counts.get(key, 0) + 1
    return tuple(CpuCluster(core, n, clock, isa) for (core, isa, clock), n in counts.items())
