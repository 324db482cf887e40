"""Choose the emulated CPU of a board, and write the kernel's files about it.

qemu-user knows a handful of Arm cores. A board whose core is among them gets exactly that one; any
other gets the most capable one all of whose instructions the board has too, so that what passes
here cannot die of SIGILL there. The rehearsal reports the features of the board that stay untested.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from boardfit.device_profiles.profile import DeviceProfile
from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import UsageError
from boardfit.edge.units import KIB

_DATA = load_toml("boardfit.converters.board.rehearse", "cpus.toml")


@dataclass(frozen=True)
class EmulatedCpu:
    """A CPU model of qemu: its name for `-cpu`, its instructions in the profiles' words, and its
    MIDR part number (0x41 is Arm's implementer id).
    """

    name: str
    isa: frozenset[str]
    part: int

    @property
    def model(self) -> str:
        """The name without options: what `qemu -cpu help` lists."""
        return self.name.partition(",")[0]


CPUS = tuple(
    EmulatedCpu(name, frozenset(_DATA["isa"][isa]), part)
    for name, (isa, part) in _DATA["cpus"].items()
)


@dataclass(frozen=True)
class CpuChoice:
    """The CPU played for a board; `untried` are the board's instructions that it lacks."""

    cpu: EmulatedCpu
    exact: bool
    untried: frozenset[str]

    def describe(self, board_core: str) -> str:
        """One line for a person."""
        if self.exact:
            return f"{self.cpu.name}, the board's own core"
        rest = f"; untried: {', '.join(sorted(self.untried))}" if self.untried else ""
        return f"{self.cpu.name}, the nearest that qemu knows to {board_core}{rest}"


def known_models(help_text: str) -> frozenset[str]:
    """Model names in the output of `qemu-aarch64 -cpu help`."""
    return frozenset(re.findall(r"^\s+([a-z0-9][a-z0-9-]*)\s*$", help_text, re.MULTILINE))


def choose_cpu(device: DeviceProfile, models: Iterable[str]) -> CpuChoice:
    """The CPU to emulate for `device`, out of qemu's `models`. The board's weakest cluster decides:
    a program may land on any core. Raises UsageError when the board is no 64-bit Arm.
    """
    if "neon" not in device.isa:
        raise UsageError(
            f"{device.name} is not a 64-bit Arm board, and only those are rehearsed",
            next_step="on the board's own kind of machine: edge run BUNDLE",
        )
    offered = [cpu for cpu in CPUS if cpu.model in set(models)]
    weakest = min(device.clusters, key=lambda cluster: len(cluster.isa))
    for cpu in offered:
        if cpu.name == weakest.core and cpu.isa <= device.isa:
            return CpuChoice(cpu, True, device.isa - cpu.isa)
    fitting = [cpu for cpu in offered if cpu.isa <= device.isa]
    if not fitting:
        raise UsageError(
            f"this qemu knows no CPU that fits {device.name}", next_step="install qemu 7 or later"
        )
    best = max(fitting, key=lambda cpu: len(cpu.isa))  # the first of equals
    return CpuChoice(best, False, device.isa - best.isa)


def cpuinfo(cpu: EmulatedCpu, n_cores: int) -> str:
    """/proc/cpuinfo of `n_cores`. Libraries trust it: it never claims what `cpu` cannot do."""
    known = _DATA["kernel_words"]
    features = " ".join(words for words, flag in known if not flag or flag in cpu.isa)
    return "".join(
        f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        f"CPU part\t: 0x{cpu.part:03x}\nCPU revision\t: 0\n\n"
        for i in range(n_cores)
    )


def write_fakes(fakes: Path, cpu: EmulatedCpu, device: DeviceProfile, free_bytes: int) -> None:
    """The board's /proc/cpuinfo, /proc/meminfo and /sys, as the engine will read them."""
    fakes.mkdir(parents=True)
    (fakes / "cpuinfo").write_text(cpuinfo(cpu, device.n_cores))
    fields = {"MemTotal": device.ram_bytes, "MemFree": free_bytes, "MemAvailable": free_bytes,
              "Buffers": 0, "Cached": 0, "SwapCached": 0, "Active": 0, "Inactive": 0,
              "SwapTotal": 0, "SwapFree": 0, "Shmem": 0, "Slab": 0, "SReclaimable": 0}  # fmt: skip
    lines = [f"{name + ':':<16}{value // KIB:>8} kB\n" for name, value in fields.items()]
    (fakes / "meminfo").write_text("".join(lines))
    write_sysfs(fakes / "sys", device.n_cores)


def write_sysfs(root: Path, n_cores: int) -> None:
    """What engines read of /sys: tcmalloc aborts without it, onnxruntime on the host's."""
    cpus = root / "devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text(f"0-{n_cores - 1}\n" if n_cores > 1 else "0\n")
    for i in range(n_cores):
        (cpus / f"cpu{i}").mkdir()
