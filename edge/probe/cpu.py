"""CPU cores and their instruction sets, from the text of /proc/cpuinfo."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from boardfit.device_profiles.profile import CpuCluster

# MIDR part numbers by implementer. Source: Linux, arch/arm64/include/asm/cputype.h.
_ARM_PARTS: Mapping[int, Mapping[int, str]] = {
    0x41: {
        0xD03: "cortex-a53", 0xD04: "cortex-a35", 0xD05: "cortex-a55", 0xD07: "cortex-a57",
        0xD08: "cortex-a72", 0xD09: "cortex-a73", 0xD0A: "cortex-a75", 0xD0B: "cortex-a76",
        0xD0C: "neoverse-n1", 0xD0D: "cortex-a77", 0xD40: "neoverse-v1", 0xD41: "cortex-a78",
        0xD42: "cortex-a78ae", 0xD44: "cortex-x1", 0xD46: "cortex-a510", 0xD47: "cortex-a710",
        0xD48: "cortex-x2", 0xD49: "neoverse-n2", 0xD4B: "cortex-a78c", 0xD4D: "cortex-a715",
        0xD4E: "cortex-x3", 0xD4F: "neoverse-v2", 0xD80: "cortex-a520", 0xD81: "cortex-a720",
        0xD82: "cortex-x4", 0xD85: "cortex-x925", 0xD87: "cortex-a725",
    },
    0x4E: {0x003: "denver-2", 0x004: "carmel"},
    0x51: {0x001: "oryon", 0x802: "kryo-385-gold", 0x803: "kryo-385-silver"},
    0x61: {0x022: "apple-m1-icestorm", 0x023: "apple-m1-firestorm"},
}  # fmt: skip

# Kernel's name of a feature → ours. Sources: Linux, Documentation/arch/arm64/elf_hwcaps.rst and
# arch/x86/include/asm/cpufeatures.h.
_FLAGS = {
    "asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2", "sme": "sme", "atomics": "lse",
    "sse4_2": "sse42", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c",
    "avx_vnni": "avx_vnni", "avx512f": "avx512", "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16", "amx_int8": "amx_int8",
}  # fmt: skip

_INDEX = re.compile(r"[0-9]{1,4}")


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
    physical, core_id = fields.get("physical id"), fields.get("core id")
    return CpuCore(
        index=int(fields["processor"]),
        core=_core_name(fields),
        isa=frozenset(_FLAGS[flag] for flag in flags if flag in _FLAGS),
        clock_hz=_megahertz(fields.get("cpu mhz")),
        core_key=(physical, core_id) if physical is not None and core_id is not None else None,
    )


def _core_name(fields: Mapping[str, str]) -> str:
    try:
        implementer = int(fields["cpu implementer"], 16)
        part = int(fields["cpu part"], 16)
    except (KeyError, ValueError):
        return fields.get("model name", "unknown")
    known = _ARM_PARTS.get(implementer, {}).get(part)
    return known or f"arm-{implementer:#x}-{part:#x}"


def _megahertz(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value * 1e6 if 0 < value < 1e6 and math.isfinite(value) else None


def find_field(text: str, *names: str) -> str | None:
    """The first value in /proc/cpuinfo of these names. Raspberry Pi kernels print `Model` at the
    end.
    """
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
