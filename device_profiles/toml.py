"""From the text of a board file to a `DeviceProfile`: every key known, typed, in range, sourced."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from boardfit.device_profiles.profile import (
    ISA_FLAGS,
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
from boardfit.device_profiles.toml_parser import TOMLDecodeError, decode_toml, load_toml

#: What an id looks like.
BOARD_ID = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*\Z")
_HEADER = re.compile(r"^\s*\[+([a-z_.]+)\]+\s*(#.*)?$")
_KEY = re.compile(r"^\s*([a-z_0-9]+)\s*=")
_SOURCE = re.compile(r"^\s*#\s*Source:\s*(.+?)\s*$")


@dataclass(frozen=True)
class _Key:
    """One key of a table in `keys.toml`, which explains the fields."""

    kind: str
    low: float = 0
    high: float = 0
    scale: float = 1
    name: str = ""
    needed: bool = False

    @property
    def expected(self) -> str:
        words = {"text": "a text", "bool": "true or false", "whole": "a whole number"}
        if self.kind in ("texts", "flags"):
            return "a list of texts"
        what = words.get(self.kind, "a number")
        return f"{what} from {self.low:g} to {self.high:g}" if self.high else what

    def accepts(self, value: Any) -> bool:
        if self.kind == "text":
            return isinstance(value, str) and bool(value.strip())
        if self.kind == "bool":
            return isinstance(value, bool)
        if self.kind in ("texts", "flags"):
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        is_figure = type(value) is int or (type(value) is float and self.kind == "number")
        return is_figure and self.low <= value <= self.high

    def convert(self, value: Any) -> Any:
        """The value in base units."""
        if self.kind in ("number", "whole"):
            return int(value * self.scale) if self.kind == "whole" else value * self.scale
        return {"texts": tuple, "flags": frozenset}.get(self.kind, lambda same: same)(value)


# What a prediction for a board rests on, in the words that are printed beside it.
_HERE, _MEASURED, _SPECIFIED = "measured here", "measured on this SoC", "from specifications"

_LISTS = ("cpu", "engines", "bandwidth", "kernels")


@lru_cache(maxsize=1)
def _schema() -> dict[str, dict[str, _Key]]:
    """Table → key → what it holds; the top of a file is the table ""."""
    return {
        "" if table == "top" else table: {key: _Key(**row) for key, row in keys.items()}
        for table, keys in load_toml(__package__, "keys.toml").items()
    }


def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The file as a dict, every key checked. Raises ProfileError naming `origin` and the key."""
    try:
        data: dict[str, Any] = decode_toml(text)
    except TOMLDecodeError as error:
        raise ProfileError(f"{origin}: not valid TOML: {error}") from None
    for key, value in data.items():
        if key not in _schema() or not key:
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


def _check_value(origin: str, table: str, key: str, value: Any) -> None:
    where = f"{origin}: {f'[{table}] ' if table else ''}{key}"
    known = _schema()[table]
    if key not in known:
        names = list(known) + ([] if table else [name for name in _schema() if name])
        raise ProfileError(f"{where}: unknown key; known: {', '.join(names)}.{suggest(key, names)}")
    kind = known[key]
    if not kind.accepts(value):
        unit = " (the unit is part of the key's name)" if "number" in kind.expected else ""
        raise ProfileError(f"{where}: expected {kind.expected}, got {value!r}{unit}")
    if kind.kind == "flags":
        for flag in value:
            if flag not in ISA_FLAGS:
                raise ProfileError(f"{where}: unknown ISA flag {flag!r}.{suggest(flag, ISA_FLAGS)}")


def parse_sources(text: str) -> dict[str, str]:
    """Dotted key → text of the `# Source:` comment above it.

    A comment holds for the keys below it up to a blank line, the next table or the next comment.
    Repeated tables are numbered, as in `cpu.1.count`.
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
    _require_keys(data, origin)
    top = {name: value for name, value in data.items() if name in _schema()[""]}
    if not BOARD_ID.match(top["id"]):
        raise ProfileError(f"{origin}: id {top['id']!r} must be lower-case words with hyphens")
    rates = ((row["threads"], row["gb_per_s"]) for row in _rows(data, "bandwidth"))
    (stated,) = _rows(data, "memory")
    stated.pop("sustained_is_measured", None)
    memory = BoardMemory(**stated, bandwidth_by_threads=tuple(sorted(rates)))
    if memory.reserved_bytes >= memory.ram_bytes:
        raise ProfileError(f"{origin}: [memory] reserved_mib must be less than ram_mib")
    if (memory.bandwidth_sustained or 0) > (memory.bandwidth_theoretical or float("inf")):
        raise ProfileError(
            f"{origin}: [memory] sustained_gb_per_s is more than theoretical_gb_per_s"
        )
    parts: dict[str, Any] = {}
    for table, kind in (("accelerator", Accelerator), ("storage", Storage), ("software", Software)):
        for row in _rows(data, table):
            parts[table] = kind(**row)
    for row in (*_rows(data, "heat"), *_rows(data, "power")):
        parts |= row
    return DeviceProfile(
        **_convert("", top),
        **parts,
        memory=memory,
        clusters=tuple(CpuCluster(**row) for row in _rows(data, "cpu")),
        basis=_basis(data),
        engines=tuple(EngineSupport(**row) for row in _rows(data, "engines")),
        kernel_speeds=tuple(KernelSpeed(**row) for row in _rows(data, "kernels")),
        sources=dict(sources or {}),
    )


def _require_keys(data: Mapping[str, Any], origin: str) -> None:
    for table, keys in _schema().items():
        given = data.get(table, {} if table == "memory" else []) if table else data
        shown = (f"[[{table}]] " if table in _LISTS else f"[{table}] ") if table else ""
        if table == "cpu" and not given:
            raise ProfileError(f"{origin}: at least one [[cpu]] cluster is needed")
        for row in given if isinstance(given, list) else [given]:
            for key in keys:
                if keys[key].needed and key not in row:
                    raise ProfileError(f"{origin}: {shown}{key} is missing")


def _rows(data: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
    """The entries of a table as fields in base units; empty where there is no such table."""
    found = data.get(table, [])
    return [_convert(table, row) for row in (found if isinstance(found, list) else [found])]


def _convert(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    kinds = _schema()[table]
    return {kinds[key].name or key: kinds[key].convert(value) for key, value in row.items()}


def _basis(data: Mapping[str, Any]) -> str:
    memory = data.get("memory", {})
    if "measured" in data and "sustained_gb_per_s" in memory:
        return _HERE
    return _MEASURED if memory.get("sustained_is_measured") else _SPECIFIED
