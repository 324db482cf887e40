"""Use a probe's measurements of a board instead of kernel tables and data sheets.

Types that `edge probe` did not time keep their ratio to one that it did.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from boardfit.device_profiles.cost.kernels import macs_per_cycle
from boardfit.device_profiles.profile import BoardMemory, DeviceProfile, KernelSpeed


def measured_bandwidth(memory: BoardMemory, n_threads: int) -> float | None:
    """Bytes per second at `n_threads`, interpolated between measured counts; None without any."""
    pairs = memory.bandwidth_by_threads
    if not pairs:
        return None
    for (few, slow), (many, fast) in pairwise(pairs):
        if few <= n_threads <= many:
            return slow + (fast - slow) * (n_threads - few) / (many - few)
    first, last = pairs[0], pairs[-1]
    return first[1] * n_threads / first[0] if n_threads < first[0] else last[1]


def with_implied_clocks(profile: DeviceProfile) -> DeviceProfile:
    """The profile with missing clocks (virtual machines report none) that fit the products."""
    kernels = profile.kernel_speeds
    if not kernels or all(cluster.clock_hz is not None for cluster in profile.clusters):
        return profile
    clocks = []
    for kernel in kernels:
        per_cycle, left = 0.0, kernel.threads
        for cluster in profile.clusters:
            n = min(left, cluster.count)
            rate = macs_per_cycle(
                kernel.ggml_type, profile.isa, cluster.core, repacked=kernel.repacked
            )
            per_cycle, left = per_cycle + n * (rate or 0.0), left - n
        if per_cycle:
            clocks.append(kernel.macs_per_s / per_cycle)
    if not clocks:
        return profile
    implied = median(clocks)
    clusters = tuple(replace(c, clock_hz=c.clock_hz or implied) for c in profile.clusters)
    return replace(profile, clusters=clusters)


def measured_throughput(
    kernels: Sequence[KernelSpeed],
    ggml_type: str,
    *,
    repacked: bool,
    relative: Callable[[str], float | None],
    cores: Callable[[int], float],
    n_threads: int,
) -> float | None:
    """Multiply-accumulates per second of a large product; None where no kernel of that layout is
    measured. `relative` is a type's rate in the kernel table, `cores` the weight of some threads.
    """
    known = [kernel for kernel in kernels if kernel.repacked == repacked]
    if not known:
        return None

    def distance(kernel: KernelSpeed) -> tuple[bool, bool, int]:
        alike = kernel.ggml_type.endswith("_K") == ggml_type.endswith("_K")
        return (kernel.ggml_type != ggml_type, not alike, abs(kernel.threads - n_threads))

    nearest = min(known, key=distance)
    factor = cores(n_threads) / cores(nearest.threads)
    if nearest.ggml_type != ggml_type:
        ours, theirs = relative(ggml_type), relative(nearest.ggml_type)
        if ours is None or not theirs:
            return None
        factor *= ours / theirs
    return nearest.macs_per_s * factor
