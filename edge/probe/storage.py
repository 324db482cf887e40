"""What the system is stored on, and how fast files are read from it with the page cache kept out.
Nothing is ever written: flash wears."""

import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from boardfit.edge.probe.system import System, read_number

_BLOCK_BYTES = 4 << 20  # one read: long enough for a card's sequential speed, and a page multiple
_ENOUGH_BYTES = 96 << 20
_LEAST_BYTES = 8 << 20
_MINORS = {"SD": "microSD", "MMC": "eMMC"}
# Folders with large files that any user may read, on any Linux.
_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/bin", "/boot", "/opt", "/system/lib64", "/system/app")


def storage_medium(system: System) -> str | None:
    """`NVMe SSD`, `microSD`, `eMMC`, `UFS`, `SSD` or `disk` for / (on Android /data). None behind
    overlays, device mappers and network roots.
    """
    device = _root_device(system.read("/proc/self/mountinfo") or "")
    if device is None:
        names = [path.rsplit("/", 1)[1] for path in system.glob("/sys/block/*")]
        real = [n for n in names if re.match(r"(nvme|mmcblk|sd|vd)", n) and "boot" not in n]
        device = real[0] if len(real) == 1 else None
    if device is None:
        return None
    name = re.sub(r"p\d+$" if device[:2] in ("nv", "mm") else r"\d+$", "", device)
    if name.startswith("nvme"):
        return "NVMe SSD"
    if name.startswith("mmcblk"):
        return _MINORS.get((system.read(f"/sys/block/{name}/device/type") or "").strip(), "SD/eMMC")
    turning = read_number(system, f"/sys/block/{name}/queue/rotational")
    return {0: "SSD", 1: "disk"}.get(turning) if turning is not None else None


def _root_device(mountinfo: str) -> str | None:
    """The block device's name under / or, on Android, /data (format: proc(5))."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        left, dash, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if dash and len(fields) >= 5 and len(kind) >= 2 and kind[1].startswith("/dev/"):
            found[fields[4]] = kind[1].rsplit("/", 1)[1]
    device = found.get("/data") or found.get("/")
    return device if device and re.match(r"(nvme|mmcblk|sd|vd)", device) else None


def measure_read_speed(files: list[Path] | None = None, *, seconds: float = 2.0) -> float | None:
    """Bytes per second of sequential reads past the page cache (O_DIRECT), from large files that
    are there already. None where that is not allowed or too little could be read.
    """
    if not hasattr(os, "O_DIRECT"):
        return None
    total, spent = 0, 0.0
    for path in files if files is not None else large_files():
        for n_bytes, took in _read_direct(path):
            total, spent = total + n_bytes, spent + took
            if total >= _ENOUGH_BYTES or spent >= seconds:
                return total / spent if total >= _LEAST_BYTES else None
    return total / spent if total >= _LEAST_BYTES and spent > 0 else None


def _read_direct(path: Path) -> Iterator[tuple[int, float]]:
    """(bytes, seconds) of each block of a file; nothing for a file that cannot be read directly."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return
    try:
        with closing(mmap.mmap(-1, _BLOCK_BYTES)) as buffer:  # page-aligned, as O_DIRECT demands
            while True:
                start = time.perf_counter()
                try:
                    n_bytes = os.readv(handle, [buffer])
                except OSError:
                    return
                # The last piece is short, and its time is mostly latency.
                if n_bytes < _BLOCK_BYTES:
                    return
                yield n_bytes, time.perf_counter() - start
    finally:
        os.close(handle)


def large_files() -> list[Path]:
    """The largest files in the usual places, those of one folder deep included."""
    found: list[tuple[int, Path]] = []
    for folder in _FOLDERS:
        inside = [e.path for e in _entries(folder) if e.is_dir(follow_symlinks=False)]
        for directory in (folder, *inside[:64]):
            for entry in _entries(directory):
                if entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    if size >= _BLOCK_BYTES and os.access(entry.path, os.R_OK):
                        found.append((size, Path(entry.path)))
    return [path for _, path in sorted(found, reverse=True)[:32]]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []
