"""RAM that a process may really use: /proc/meminfo and the cgroup limits (v1 and v2) over it."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from boardfit.edge.probe.system import System, parse_number

_MEMINFO = re.compile(r"^(\w+(?:\(\w+\))?):\s+([0-9]{1,15})\s*kB", re.MULTILINE)
# cgroup v1 writes "no limit" as the largest page-aligned signed 64-bit number.
_NO_LIMIT = 1 << 60


class CgroupMount(NamedTuple):
    """A mounted memory controller: version 1 or 2, and which part of the hierarchy shows there."""

    version: int
    mount_point: str
    root: str


class CgroupLimit(NamedTuple):
    """One cgroup's limit and what is used of it, droppable page cache left out; None: unknown."""

    limit_bytes: int
    used_bytes: int | None


def parse_meminfo(text: str) -> dict[str, int]:
    """Field → bytes (`MemTotal`, `MemAvailable`, …). Lines without a size are left out."""
    return {name: int(kib) * 1024 for name, kib in _MEMINFO.findall(text)}


def available_bytes(meminfo: dict[str, int]) -> int | None:
    """What can be used without swapping; before Linux 3.14 free pages and the page cache."""
    if "MemAvailable" in meminfo:
        return meminfo["MemAvailable"]
    if "MemFree" not in meminfo:
        return None
    return meminfo["MemFree"] + meminfo.get("Cached", 0)


def parse_cgroup_mounts(mountinfo: str) -> tuple[CgroupMount, ...]:
    """Memory controllers in /proc/self/mountinfo (format: proc(5))."""
    mounts = []
    for line in mountinfo.splitlines():
        left, dash, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not dash or len(fields) < 5 or not kind:
            continue
        options = kind[-1].split(",")
        if kind[0] == "cgroup2":
            mounts.append(CgroupMount(2, fields[4], fields[3]))
        elif kind[0] == "cgroup" and "memory" in options:
            mounts.append(CgroupMount(1, fields[4], fields[3]))
    return tuple(mounts)


def parse_cgroup_path(text: str, version: int) -> str | None:
    """This process's path in the memory hierarchy, from /proc/self/cgroup."""
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        hierarchy, controllers, path = parts
        if version == 2 and hierarchy == "0" and not controllers:
            return path
        if version == 1 and "memory" in controllers.split(","):
            return path
    return None


def cgroup_folders(mount: CgroupMount, path: str) -> tuple[str, ...]:
    """The process's own folder and all above it up to the mount point: every limit counts."""
    root = mount.root.rstrip("/")
    is_inside = path == mount.root or path.startswith(f"{root}/")
    inside = path[len(root) :].strip("/") if is_inside else ""
    folders = [mount.mount_point]
    for part in PurePosixPath(inside).parts:
        if part == "..":
            break
        folders.append(f"{folders[-1]}/{part}")
    return tuple(reversed(folders))


def parse_limit(text: str) -> int | None:
    """`memory.max` or `memory.limit_in_bytes`; None means no limit."""
    value = parse_number(text)
    return value if value is not None and 0 <= value < _NO_LIMIT else None


def parse_droppable(memory_stat: str) -> int:
    """Page cache that the kernel drops under pressure (`inactive_file`), bytes."""
    fields = dict(line.split()[:2] for line in memory_stat.splitlines() if len(line.split()) >= 2)
    text = fields.get("total_inactive_file", fields.get("inactive_file"))
    return max(0, parse_number(text) or 0)


def read_limits(system: System) -> tuple[CgroupLimit, ...]:
    """All cgroup memory limits that hold for the reading process, innermost first."""
    own, found = system.read("/proc/self/cgroup") or "", []
    for mount in parse_cgroup_mounts(system.read("/proc/self/mountinfo") or ""):
        path = parse_cgroup_path(own, mount.version)
        folders = () if path is None else cgroup_folders(mount, path)
        found += [_read_limit(system, folder, mount.version) for folder in folders]
    return tuple(limit for limit in found if limit is not None)


def _read_limit(system: System, folder: str, version: int) -> CgroupLimit | None:
    limit_name, used_name = "memory.max", "memory.current"
    if version == 1:
        limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
    limit = parse_limit(system.read(f"{folder}/{limit_name}") or "")
    if limit is None:
        return None
    used = parse_limit(system.read(f"{folder}/{used_name}") or "")
    if used is not None:
        used = max(0, used - parse_droppable(system.read(f"{folder}/memory.stat") or ""))
    return CgroupLimit(limit, used)


def usable_memory(
    meminfo: dict[str, int], limits: Iterable[CgroupLimit]
) -> tuple[int | None, int | None]:
    """(RAM in all, free now) in bytes, each the smallest of the machine's and every limit's."""
    total, free = meminfo.get("MemTotal"), available_bytes(meminfo)
    for limit in limits:
        total = limit.limit_bytes if total is None else min(total, limit.limit_bytes)
        left = limit.limit_bytes - (limit.used_bytes or 0)
        free = left if free is None else min(free, left)
    return total, None if free is None else max(0, free)
