"""What runs on a board behind ssh: measure this machine, print findings as JSON lines.

    python3 probe.zip MARK '{"clusters": […], "ram_bytes": …, "free_bytes": …, "quick": false}'

Shipped with its package as a zip file (`boardfit.edge.probe.remote_measure`), so that it needs
nothing but Python 3.10 on the board; with llama-cpp-python there, the engine's own kernels are
timed.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.device_profiles.profile import BoardMemory, CpuCluster, DeviceProfile
from boardfit.edge.probe.measure import Measurements, measure_machine


def build_profile(asked: Mapping[str, Any]) -> DeviceProfile:
    """The little of a profile that measuring needs."""
    clusters = tuple(
        CpuCluster(c["core"], c["count"], c["clock_hz"], frozenset(c["isa"]))
        for c in asked["clusters"]
    )
    ram = asked["ram_bytes"]
    memory = BoardMemory(ram, max(0, ram - asked["free_bytes"]))
    return DeviceProfile("here", "this board", memory, clusters)


def findings_record(found: Measurements) -> dict[str, Any]:
    """Findings as a JSON-able object."""
    return {
        "python": platform.python_version(),
        "bandwidth_by_threads": sorted(found.bandwidth_by_threads.items()),
        "kernels": [[k.ggml_type, k.repacked, k.threads, k.macs_per_s] for k in found.kernels],
        "storage_read": found.storage_read,
        "engine_isa": None if found.engine_isa is None else sorted(found.engine_isa),
        "method": found.method,
        "notes": found.notes,
    }


def main(argv: Sequence[str]) -> None:
    """`MARK JSON` → lines `MARK progress DONE STEPS`, then `MARK found JSON`."""
    mark, text = argv
    asked = json.loads(text)

    def progress(done: int, steps: int) -> None:
        print(mark, "progress", done, steps, flush=True)

    found = measure_machine(build_profile(asked), quick=asked["quick"], progress=progress)
    print(mark, "found", json.dumps(findings_record(found)), flush=True)
