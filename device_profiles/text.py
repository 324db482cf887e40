"""A `DeviceProfile` as the text of a board file, which `load_profile` reads, and as a record.

Text from a board is hostile: it is written as TOML strings, escaped.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from boardfit.device_profiles.engine_rules import engine_verdicts
from boardfit.device_profiles.profile import MIB, DeviceProfile

Value = str | int | float | bool | Iterable[str]


def profile_text(
    profile: DeviceProfile,
    *,
    source: str,
    borrowed: str | None = None,
    measured: Mapping[str, str] | None = None,
) -> str:
    """The file's text. `source` stands above what was read on the board, `borrowed` above what
    comes from the profile of a known board; `measured` (`date`, `tool`): the bandwidth was measured
    here.
    """
    memory, storage, software = profile.memory, profile.storage, profile.software
    comment = f"# Source: {_one_line(source)}"
    known = f"# Source: {_one_line(borrowed)}" if borrowed else comment
    rates = _table(
        theoretical_gb_per_s=_scale(memory.bandwidth_theoretical),
        sustained_gb_per_s=None if measured else _scale(memory.bandwidth_sustained),
    )
    lines = _table(id=profile.id, name=profile.name, soc=profile.soc)
    lines += ["", "[memory]", comment]
    lines += _table(
        ram_mib=max(1, memory.ram_bytes // MIB),
        reserved_mib=min(-(-memory.reserved_bytes // MIB), memory.ram_bytes // MIB - 1),
        sustained_gb_per_s=_scale(memory.bandwidth_sustained) if measured else None,
        sustained_is_measured=True if profile.basis.startswith("measured") else None,
    )
    lines += [known, *rates] if rates else []
    for cluster in profile.clusters:
        clock = None if cluster.clock_hz is None else round(cluster.clock_hz / 1e6, 1)
        lines += ["", "[[cpu]]", comment, *_table(core=cluster.core, count=cluster.count)]
        lines += _table(clock_mhz=clock, isa=sorted(cluster.isa))
    if profile.accelerator is not None:
        a = profile.accelerator
        lines += ["", "[accelerator]", known]
        lines += _table(
            kind=a.kind,
            name=a.name,
            cores=a.cores,
            compute_capability=a.compute_capability,
            memory_mib=None if a.memory_bytes is None else a.memory_bytes // MIB,
        )
    read = _scale(storage.read, 1e6)
    lines += _group("storage", comment, medium=storage.medium, read_mb_per_s=read)
    tags = software.wheel_tags or None
    lines += _group("software", comment, **{**vars(software), "wheel_tags": tags})
    lines += _group("heat", known, sustained_share=profile.sustained_share)
    lines += _group("power", known, idle_w=profile.idle_w, load_w=profile.load_w)
    lines += _group("measured", None, **(measured or {}))
    for threads, rate in memory.bandwidth_by_threads:
        lines += ["", "[[bandwidth]]", *_table(threads=threads, gb_per_s=_scale(rate))]
    for kernel in profile.kernel_speeds:
        lines += ["", "[[kernels]]", *_table(type=kernel.ggml_type, repacked=kernel.repacked)]
        lines += _table(threads=kernel.threads, gmacs_per_s=_scale(kernel.macs_per_s))
    for engine in profile.engines:
        lines += ["", "[[engines]]", *_table(**{**vars(engine), "note": engine.note or None})]
    return "\n".join(lines) + "\n"


def _group(name: str, comment: str | None, **values: Value | None) -> list[str]:
    rows = _table(**values)
    return ["", f"[{name}]", *([comment] if comment else []), *rows] if rows else []


def _table(**values: Value | None) -> list[str]:
    return [f"{key} = {_value(v)}" for key, v in values.items() if v is not None]


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    return f"[{', '.join(_string(item) for item in value)}]"


def _string(text: str) -> str:
    """A TOML basic string (toml.io), which escapes more than JSON; lone surrogates replaced."""
    text = json.dumps(text.encode("utf-8", "replace").decode("utf-8"), ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _scale(value: float | None, unit: float = 1e9) -> float | None:
    return None if value is None else float(f"{value / unit:.4g}")


def profile_record(profile: DeviceProfile) -> dict[str, Any]:
    return {
        "id": profile.id,
        "name": profile.name,
        "aliases": list(profile.aliases),
        "soc": profile.soc,
        "basis": profile.basis,
        "ram_bytes": profile.ram_bytes,
        "reserved_bytes": profile.memory.reserved_bytes,
        "free_ram_bytes": profile.free_ram_bytes,
        "bandwidth_theoretical_bytes_per_s": profile.memory.bandwidth_theoretical,
        "bandwidth_sustained_bytes_per_s": profile.memory.bandwidth_sustained,
        "bandwidth_by_threads": [
            {"threads": n, "bytes_per_s": rate} for n, rate in profile.memory.bandwidth_by_threads
        ],
        "kernel_speeds": [
            {
                "type": kernel.ggml_type,
                "repacked": kernel.repacked,
                "threads": kernel.threads,
                "macs_per_s": kernel.macs_per_s,
            }
            for kernel in profile.kernel_speeds
        ],
        "clusters": [{**vars(cluster), "isa": sorted(cluster.isa)} for cluster in profile.clusters],
        "accelerator": profile.accelerator.name if profile.accelerator else None,
        "storage_medium": profile.storage.medium,
        "storage_read_bytes_per_s": profile.storage.read,
        "storage_write_bytes_per_s": profile.storage.write,
        "os": profile.software.os,
        "libc": profile.software.libc,
        "python": profile.software.python,
        "sustained_share": profile.sustained_share,
        "idle_w": profile.idle_w,
        "load_w": profile.load_w,
        "engines": [
            {"engine": e.engine, "runs": e.runs, "note": e.note, "source": e.source}
            for e in engine_verdicts(profile)
        ],
        "sources": dict(profile.sources),
    }
