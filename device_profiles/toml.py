"""From the text of a board file to a `DeviceProfile`: every key known, typed, in range, sourced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boardfit.device_profiles.profile import (
    ISA_FLAGS,
    MIB,
    Accelerator,
    BoardMemory,
    CpuCluster,
    DeviceProfile,
    EngineSupport,
    KernelSpeed,
    ProfileError,
    Software,
    Storage,
    suggest,
)
from boardfit.device_profiles.toml_parser import TOMLDecodeError, decode_toml

#: What an id looks like.
BOARD_ID = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*\Z")
_HEADER = re.compile(r"^\s*\[+([a-z_.]+)\]+\s*(#.*)?$")
_KEY = re.compile(r"^\s*([a-z_0-9]+)\s*=")
_SOURCE = re.compile(r"^\s*#\s*Source:\s*(.+?)\s*$")


@dataclass(frozen=True)
class _Figure:
    """A number in a file: its range in the file's unit, and the factor to base units."""

    low: float
    high: float
    scale: float = 1.0
    whole: bool = False


_TEXT, _TEXTS, _BOOL = object(), object(), object()

# What a prediction for a board rests on, in the words that are printed beside it.
_HERE, _MEASURED, _SPECIFIED = "measured here", "measured on this SoC", "from specifications"

# table → key → what it holds. Ranges refuse slips of the unit (a Pi with 8 MiB or 8 TiB of RAM).
_SCHEMA: dict[str, dict[str, object]] = {
    "": {"id": _TEXT, "name": _TEXT, "aliases": _TEXTS, "extends": _TEXT, "soc": _TEXT},
    "memory": {
        "ram_mib": _Figure(16, 1024 * 1024, MIB, whole=True),
        "reserved_mib": _Figure(0, 1024 * 1024, MIB, whole=True),
        "theoretical_gb_per_s": _Figure(0.5, 2000, 1e9),
        "sustained_gb_per_s": _Figure(0.2, 2000, 1e9),
        "sustained_is_measured": _BOOL,
    },
    "cpu": {
        "core": _TEXT,
        "count": _Figure(1, 256, whole=True),
        "clock_mhz": _Figure(100, 8000, 1e6),
        "isa": _TEXTS,
    },
    "accelerator": {
        "kind": _TEXT,
        "name": _TEXT,
        "cores": _Figure(1, 100_000, whole=True),
        "compute_capability": _TEXT,
        "memory_mib": _Figure(64, 1024 * 1024, MIB, whole=True),
    },
    "storage": {
        "medium": _TEXT,
        "read_mb_per_s": _Figure(1, 50_000, 1e6),
        "write_mb_per_s": _Figure(1, 50_000, 1e6),
    },
    "software": {"os": _TEXT, "libc": _TEXT, "python": _TEXT, "wheel_tags": _TEXTS},
    "heat": {"sustained_share": _Figure(0.05, 1.0)},
    "power": {"idle_w": _Figure(0.05, 500), "load_w": _Figure(0.1, 1000)},
    "engines": {"engine": _TEXT, "runs": _BOOL, "source": _TEXT, "note": _TEXT},
    # What `edge probe` writes: measured on this very board, on that day.
    "measured": {"date": _TEXT, "tool": _TEXT},
    "bandwidth": {"threads": _Figure(1, 1024, whole=True), "gb_per_s": _Figure(0.05, 5000, 1e9)},
    "kernels": {
        "type": _TEXT,
        "repacked": _BOOL,
        "threads": _Figure(1, 1024, whole=True),
        "gmacs_per_s": _Figure(0.01, 1e6, 1e9),
    },
}
_LISTS = ("cpu", "engines", "bandwidth", "kernels")


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The file as a dict, every key and figure checked, figures still in the file's units.

    Raises ProfileError naming `origin` and the key.
    """
    try:
        data: dict[str, Any] = decode_toml(text)
    except TOMLDecodeError as error:
        raise ProfileError(f"{origin}: not valid TOML: {error}") from None
    for key, value in data.items():
        if key not in _SCHEMA or not key:
            _check_value(origin, "", key, value)
            continue
        if (key in _LISTS) is not isinstance(value, list):
            raise ProfileError(
                f"{origin}: write [[{key}]] entries"
                if key in _LISTS
                else f"{origin}: [{key}] must be one table"
            )
        for table in value if isinstance(value, list) else [value]:
            if not isinstance(table, dict):
                raise ProfileError(f"{origin}: [{key}] must be a table")
            for name, entry in table.items():
                _check_value(origin, key, name, entry)
    return data


def _check_value(origin: str, table: str, key: str, value: object) -> None:
    where = f"{origin}: {f'[{table}] ' if table else ''}{key}"
    known = _SCHEMA[table]
    if key not in known:
        names = list(known) + ([] if table else [name for name in _SCHEMA if name])
        raise ProfileError(f"{where}: unknown key; known: {', '.join(names)}.{suggest(key, names)}")
    kind = known[key]
    if kind is _TEXT and not (isinstance(value, str) and value.strip()):
        raise ProfileError(f"{where}: expected a text, got {value!r}")
    if kind is _BOOL and not isinstance(value, bool):
        raise ProfileError(f"{where}: expected true or false, got {value!r}")
    if kind is _TEXTS and not (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    ):
        raise ProfileError(f"{where}: expected a list of texts, got {value!r}")
    if isinstance(kind, _Figure):
        number = isinstance(value, int) or (isinstance(value, float) and not kind.whole)
        if isinstance(value, bool) or not number or not kind.low <= value <= kind.high:  # type: ignore[operator]
            what = "a whole number" if kind.whole else "a number"
            raise ProfileError(
                f"{where}: expected {what} from {kind.low:g} to {kind.high:g}, got {value!r}"
                " (the unit is part of the key's name)"
            )
    if key == "isa":
        for flag in value:  # type: ignore[attr-defined]
            if flag not in ISA_FLAGS:
                raise ProfileError(f"{where}: unknown ISA flag {flag!r}.{suggest(flag, ISA_FLAGS)}")


def parse_sources(text: str) -> dict[str, str]:
    """Dotted key → text of the `# Source:` comment above it.

    A comment holds for the keys below it up to a blank line, the next table or the next comment
    block, so that one source can cover a group of facts. Repeated tables are numbered, as in
    `cpu.1.count`.
    """
    sources: dict[str, str] = {}
    seen: dict[str, int] = {}
    current: list[str] = []
    table = ""
    in_comment = False
    for line in text.splitlines():
        if match := _SOURCE.match(line):
            current = [*current, match[1]] if in_comment else [match[1]]
            in_comment = True
        elif line.strip().startswith("#"):
            if in_comment:  # a source that runs over several lines
                current[-1] += " " + line.strip("# ").strip()
        elif match := _HEADER.match(line):
            name = match[1]
            if line.lstrip().startswith("[["):
                seen[name] = seen.get(name, -1) + 1
                name = f"{name}.{seen[name]}"
            table = name
            if not in_comment:
                current = []
            in_comment = False
        elif not line.strip():
            current, in_comment = [], False
        else:
            in_comment = False
            if (match := _KEY.match(line)) and current:
                sources[f"{table}.{match[1]}" if table else match[1]] = "; ".join(current)
    return sources


def merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A board's own tables over those of the SoC it extends; lists are replaced whole."""
    out = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = {**out[key], **value} if both else value
    return out


def build_profile(
    data: Mapping[str, Any], origin: str, sources: Mapping[str, str] | None = None
) -> DeviceProfile:
    """A `DeviceProfile` in base units from checked data. Raises ProfileError for a missing part."""

    def require(table: str, key: str) -> Any:
        holder = data.get(table, {}) if table else data
        if key not in holder:
            where = f"[{table}] {key}" if table else key
            raise ProfileError(f"{origin}: {where} is missing")
        return holder[key]

    def base(table: str, key: str, holder: Mapping[str, Any] | None = None) -> Any:
        value = (data.get(table, {}) if holder is None else holder).get(key)
        figure = _SCHEMA[table][key]
        if value is None or not isinstance(figure, _Figure):
            return value
        return int(value * figure.scale) if figure.whole else value * figure.scale

    profile_id = require("", "id")
    if not BOARD_ID.match(profile_id):
        raise ProfileError(f"{origin}: id {profile_id!r} must be lower-case words with hyphens")
    require("memory", "ram_mib"), require("memory", "reserved_mib")
    memory = BoardMemory(
        ram_bytes=base("memory", "ram_mib"),
        reserved_bytes=base("memory", "reserved_mib"),
        bandwidth_theoretical=base("memory", "theoretical_gb_per_s"),
        bandwidth_sustained=base("memory", "sustained_gb_per_s"),
        bandwidth_by_threads=tuple(
            sorted(
                (entry["threads"], base("bandwidth", "gb_per_s", entry))
                for entry in data.get("bandwidth", [])
            )
        ),
    )
    if memory.reserved_bytes >= memory.ram_bytes:
        raise ProfileError(f"{origin}: [memory] reserved_mib must be less than ram_mib")
    if (memory.bandwidth_sustained or 0) > (memory.bandwidth_theoretical or float("inf")):
        raise ProfileError(
            f"{origin}: [memory] sustained_gb_per_s is more than theoretical_gb_per_s"
        )
    if not data.get("cpu"):
        raise ProfileError(f"{origin}: at least one [[cpu]] cluster is needed")
    for table, needed in (
        ("cpu", ("core", "count", "isa")),
        ("engines", ("engine", "runs", "source")),
        ("bandwidth", ("threads", "gb_per_s")),
        ("kernels", ("type", "repacked", "threads", "gmacs_per_s")),
    ):
        for entry in data.get(table, []):
            for key in needed:
                if key not in entry:
                    raise ProfileError(f"{origin}: [[{table}]] {key} is missing")
    clusters = tuple(
        CpuCluster(c["core"], c["count"], base("cpu", "clock_mhz", c), frozenset(c["isa"]))
        for c in data["cpu"]
    )
    accelerator = None
    if "accelerator" in data:
        accelerator = Accelerator(
            kind=require("accelerator", "kind"),
            name=require("accelerator", "name"),
            cores=base("accelerator", "cores"),
            compute_capability=base("accelerator", "compute_capability"),
            memory_bytes=base("accelerator", "memory_mib"),
        )
    software = data.get("software", {})
    return DeviceProfile(
        id=profile_id,
        name=require("", "name"),
        memory=memory,
        clusters=clusters,
        aliases=tuple(data.get("aliases", ())),
        soc=data.get("soc"),
        accelerator=accelerator,
        storage=Storage(
            medium=base("storage", "medium"),
            read=base("storage", "read_mb_per_s"),
            write=base("storage", "write_mb_per_s"),
        ),
        software=Software(
            os=software.get("os"),
            libc=software.get("libc"),
            python=software.get("python"),
            wheel_tags=tuple(software.get("wheel_tags", ())),
        ),
        sustained_share=base("heat", "sustained_share"),
        basis=_basis(data),
        idle_w=base("power", "idle_w"),
        load_w=base("power", "load_w"),
        engines=tuple(EngineSupport(**entry) for entry in data.get("engines", [])),
        kernel_speeds=tuple(
            KernelSpeed(
                entry["type"],
                entry["repacked"],
                entry["threads"],
                base("kernels", "gmacs_per_s", entry),
            )
            for entry in data.get("kernels", [])
        ),
        sources=dict(sources or {}),
    )


def _basis(data: Mapping[str, Any]) -> str:
    memory = data.get("memory", {})
    if "measured" in data and "sustained_gb_per_s" in memory:
        return _HERE
    return _MEASURED if memory.get("sustained_is_measured") else _SPECIFIED
