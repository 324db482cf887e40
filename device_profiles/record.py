"""A `DeviceProfile` as a JSON-able object."""

from __future__ import annotations

from typing import Any

from boardfit.device_profiles.engine_rules import engine_verdicts
from boardfit.device_profiles.profile import DeviceProfile


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
