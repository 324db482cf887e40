"""Prepare a rehearsal: copy the bundle and write the board's own files."""

from __future__ import annotations

import os
from pathlib import Path

from boardfit.converters.board.engine.build import TOOL_PAIR
from boardfit.converters.board.offline.target import BoardPython, board_python
from boardfit.converters.board.rehearse.cpu import EmulatedCpu, cpuinfo, write_sysfs
from boardfit.converters.board.rehearse.limits import EnforcedLimit
from boardfit.converters.board.rehearse.sandbox import BoardSandbox
from boardfit.device_profiles.profile import DeviceProfile
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.disk.atomic import link_or_copy
from boardfit.edge.errors import UsageError
from boardfit.edge.units import KIB


def check_bundle(bundle: Bundle) -> None:
    if not any(file.role in ("launcher", "tool") for file in bundle.files):
        raise UsageError(
            f"there is no engine in {bundle.path}: nothing to install on a board",
            next_step=f"edge engine add {bundle.path} -o OUT, or edge build … --with-engine",
        )


def bundle_python(bundle: Bundle, device: DeviceProfile) -> BoardPython:
    """The Python that the bundle's wheels are for: as the bundle states, else the board's."""
    board_entry = bundle.manifest.get("board")
    python = board_entry.get("python") if isinstance(board_entry, dict) else None
    return board_python(device, python if isinstance(python, str) else None)


def tool_variant(bundle: Bundle, cpu: EmulatedCpu) -> str | None:
    """Which static tools of its bundle a phone would choose; None for a bundle of wheels."""
    if any(file.role == "launcher" for file in bundle.files):
        return None
    return TOOL_PAIR["dotprod" in cpu.isa]


def work_parent(bundle: Bundle) -> Path | None:
    """Choose a work folder beside the bundle, so that a big model is linked and not copied.

    Return None (the system's temporary folder) if that is impossible: no right to write, or a card
    mounted noexec. proot cannot take a path with a colon.
    """
    parent = bundle.path.absolute().parent
    noexec = os.statvfs(parent).f_flag & getattr(os, "ST_NOEXEC", 0)
    fits = os.access(parent, os.W_OK) and not noexec and ":" not in str(parent)
    return parent if fits else None


def copy_bundle(bundle: Bundle, target: Path) -> None:
    """The bundle as the board receives it. Big files are linked where the file system can."""
    for file in bundle.files:
        link_or_copy(bundle.path / file.name, target / file.name)
    for name, text in bundle.texts.items():  # its signature, too: keys may be pinned here
        (target / name).write_bytes(text)
    if hasattr(os, "posix_fadvise"):
        # Pages that this machine has read already are not charged; the board has none yet.
        for file in bundle.files:
            handle = os.open(target / file.name, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


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


def weakest_core(device: DeviceProfile) -> str:
    return min(device.clusters, key=lambda cluster: len(cluster.isa)).core


def list_notes(sandbox: BoardSandbox, limit: EnforcedLimit) -> tuple[str, ...]:
    """What this machine could not do."""
    notes = []
    if sandbox.is_for_tools:
        notes.append("a static program prints its text only: tokens were not compared one by one")
    elif not sandbox.can_start_programs:
        notes.append("install.sh itself was not run, only what it starts: no proot, no binfmt")
    if not limit.is_enforced:
        notes.append("the memory limit was not enforced (no rights for a cgroup), only compared")
    return tuple(notes)
