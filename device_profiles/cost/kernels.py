"""CPU kernels as data: which 4-bit (and other) types are repacked where, and multiply how fast."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from boardfit.device_profiles.profile import CpuCluster

# type → the repack variants that may apply, best first: (ISA flags that must all be there, the
# number of rows that must divide the matrix). Source: ggml/src/ggml-cpu/repack.cpp,
# ggml_repack_get_optimal_repack_type. SVE's 256-bit variant of Q4_0 gives the same bytes as i8mm's.
_REPACK: Mapping[str, tuple[tuple[frozenset[str], int], ...]] = {
    name: tuple((frozenset(flags.split("+")), rows) for flags, rows in rules)
    for name, rules in {
        "Q4_0": (("avx2", 8), ("neon+i8mm", 4), ("neon+dotprod", 4)),
        "Q4_K": (("avx2", 8), ("neon+i8mm", 8), ("neon+dotprod", 8)),
        "Q2_K": (("avx512", 8),),
        "Q5_K": (("neon+i8mm", 8), ("neon+dotprod", 8)),
        "Q6_K": (("neon+i8mm", 8), ("neon+dotprod", 8)),
        "IQ4_NL": (("avx2", 8), ("neon+dotprod", 4)),
        "MXFP4": (("avx2", 8), ("neon+dotprod", 4)),
        "Q8_0": (("neon+i8mm", 4), ("neon+dotprod", 4)),
        "Q1_0": (("neon+i8mm", 4), ("neon+dotprod", 4)),
    }.items()
}


def is_repacked(ggml_type: str, n_rows: int, isa: Set[str]) -> bool:
    """Whether the engine copies a matrix of `n_rows` rows into a faster layout of equal size.

    `n_rows` is ggml's ne[1] (rows of one expert, for a stack of experts).
    """
    return any(flags <= isa and n_rows % rows == 0 for flags, rows in _REPACK.get(ggml_type, ()))


@dataclass(frozen=True)
class KernelRate:
    """Multiply-accumulates per cycle and core in a prefill matrix product, by kernel class."""

    plain: float
    repacked: float


# The engine's kernel class of a CPU → type → rate of a reference core of that class (Cortex-A76 for
# "dotprod", Cortex-A72 for "neon"). Rates are fitted on published prefill rows of 512-token
# prompts: Pi 5 (edge-llm-memory-wall, llama.cpp discussion #30069), Pi 4 (potato-os/core), N100
# (normiebench #38), and for "neon" a plain armv8-a build on a Pixel 6a (KrisDcosta/edge-llm-bench)
# and a Jetson Nano (kreier/llama.cpp-jetson); i8mm doubles dot product's peak and reaches about 1.5
# times. Types without a
# published row take the rate of the kernel they share most code with.
_RATES: Mapping[str, Mapping[str, KernelRate]] = {
    "neon": {
        "Q4_0": KernelRate(0.9, 0.9),
        "Q4_1": KernelRate(1.1, 1.1),
        "Q5_0": KernelRate(0.9, 0.9),
        "Q5_1": KernelRate(0.9, 0.9),
        "Q8_0": KernelRate(1.3, 1.3),
        "IQ4_NL": KernelRate(1.0, 1.0),
        "MXFP4": KernelRate(1.0, 1.0),
        "IQ4_XS": KernelRate(1.0, 1.0),
        "Q2_K": KernelRate(1.0, 1.0),
        "Q3_K": KernelRate(0.9, 0.9),
        "Q4_K": KernelRate(1.15, 1.15),
        "Q5_K": KernelRate(0.9, 0.9),
        "Q6_K": KernelRate(0.85, 0.85),
        "F16": KernelRate(0.9, 0.9),
        "BF16": KernelRate(0.5, 0.5),
        "F32": KernelRate(0.9, 0.9),
        "IQ3_S": KernelRate(0.6, 0.6),
    },
    "dotprod": {
        "Q4_0": KernelRate(4.5, 12.0),
        "Q4_1": KernelRate(4.3, 4.3),
        "Q5_0": KernelRate(2.9, 2.9),
        "Q5_1": KernelRate(2.6, 2.6),
        "Q8_0": KernelRate(5.0, 10.3),
        "IQ4_NL": KernelRate(4.0, 7.8),
        "MXFP4": KernelRate(4.0, 7.8),
        "IQ4_XS": KernelRate(4.0, 4.0),
        "Q2_K": KernelRate(3.8, 3.8),
        "Q3_K": KernelRate(3.2, 3.2),
        "Q4_K": KernelRate(5.0, 8.6),
        "Q5_K": KernelRate(4.0, 7.5),
        "Q6_K": KernelRate(3.8, 7.0),
        "F16": KernelRate(4.0, 4.0),
        "BF16": KernelRate(1.0, 1.0),
        "F32": KernelRate(2.2, 2.2),
        "IQ3_S": KernelRate(2.0, 2.0),
    },
    "avx2": {
        "Q4_0": KernelRate(5.5, 9.0),
        "Q4_1": KernelRate(5.0, 5.0),
        "Q5_0": KernelRate(4.0, 4.0),
        "Q5_1": KernelRate(4.0, 4.0),
        "Q8_0": KernelRate(6.0, 6.0),
        "IQ4_NL": KernelRate(5.0, 8.0),
        "MXFP4": KernelRate(5.0, 8.0),
        "IQ4_XS": KernelRate(4.5, 4.5),
        "Q2_K": KernelRate(5.0, 5.0),
        "Q3_K": KernelRate(4.5, 4.5),
        "Q4_K": KernelRate(6.5, 9.0),
        "Q5_K": KernelRate(5.5, 5.5),
        "Q6_K": KernelRate(5.0, 5.0),
        "F16": KernelRate(5.5, 5.5),
        "BF16": KernelRate(3.0, 3.0),
        "F32": KernelRate(6.0, 6.0),
        "IQ3_S": KernelRate(3.0, 3.0),
    },
}
# A class that is a multiple of another: (base class, factor).
_DERIVED: Mapping[str, tuple[str, float]] = {"i8mm": ("dotprod", 1.5), "avx512": ("avx2", 1.8)}

# Share of the reference core's rate per cycle: in-order cores issue half as much, cores with four
# SIMD pipes (X1 and later) twice as much. Source: Arm's software optimization guides (SIMD pipes:
# A53/A55 one 64- or 128-bit, A72/A76/A78 two, X1..X4 four; A510 shares one pair between two cores);
# Oryon has four, Carmel and Denver two; Gracemont's AVX2 runs as two halves.
_CORE_SCALE: Mapping[str, float] = {
    **dict.fromkeys(("cortex-a53", "denver-2"), 0.45),
    **dict.fromkeys(("cortex-a55", "cortex-a510", "cortex-a520"), 0.5),
    **dict.fromkeys(("cortex-a57", "carmel"), 0.9),
    **dict.fromkeys(("cortex-a72", "cortex-a76"), 1.0),
    **dict.fromkeys(("cortex-a78", "cortex-a78ae", "cortex-a710", "cortex-a715"), 1.05),
    "cortex-a720": 1.1,
    **dict.fromkeys(("cortex-x1", "cortex-x2", "cortex-x3", "cortex-x4", "cortex-x925"), 1.9),
    **dict.fromkeys(("oryon", "oryon-gen-3", "neoverse-v3ae"), 1.9),
    "gracemont": 0.55,
}

# Bytes per second that one core can read: its outstanding cache misses over the memory's latency.
# Source: one-thread decode on the Pi 5 (edge-llm-memory-wall; with MNN, potato-os/core) gives
# 11 GB/s for a Cortex-A76; the others are engineering estimates after the number of outstanding
# misses (Arm's technical reference manuals).
_CORE_READ: Mapping[str, float] = {
    **dict.fromkeys(("cortex-a53", "denver-2"), 2.0e9),
    **dict.fromkeys(("cortex-a55", "cortex-a510", "cortex-a520"), 2.5e9),
    **dict.fromkeys(("cortex-a57", "cortex-a72", "carmel"), 4.5e9),
    **dict.fromkeys(("cortex-a76", "cortex-a78", "cortex-a78ae"), 11e9),
    **dict.fromkeys(("cortex-a710", "cortex-a715", "cortex-a720", "gracemont"), 12e9),
    **dict.fromkeys(("cortex-x1", "cortex-x2", "cortex-x3", "cortex-x4"), 24e9),
    **dict.fromkeys(("cortex-x925", "oryon", "oryon-gen-3", "neoverse-v3ae"), 40e9),
}
_CORE_READ_UNKNOWN = 10e9


def kernel_class(isa: Set[str]) -> str | None:
    """The engine's kernel class for a set of ISA flags; None when no rate is known for it."""
    if "neon" in isa:
        return "i8mm" if "i8mm" in isa else "dotprod" if "dotprod" in isa else "neon"
    if "avx2" in isa:
        return "avx512" if "avx512_vnni" in isa else "avx2"
    return None


def macs_per_cycle(ggml_type: str, isa: Set[str], core: str, *, repacked: bool) -> float | None:
    """Multiply-accumulates per cycle of one core in a large matrix product, None if unknown."""
    name = kernel_class(isa)
    if name is None:
        return None
    base, factor = _DERIVED.get(name, (name, 1.0))
    rate = _RATES[base].get(ggml_type)
    if rate is None:
        return None
    return (rate.repacked if repacked else rate.plain) * factor * _CORE_SCALE.get(core, 1.0)


# Kernel classes against dot product on Arm, for engines of which no rate by type is known: without
# it a product takes four instructions for one.
_CLASS_FACTOR: Mapping[str, float] = {
    **{"neon": 0.3, "dotprod": 1.0, "i8mm": 1.5, "avx2": 1.0, "avx512": 1.8}
}


def kernel_factor(isa: Set[str], core: str) -> float | None:
    """How much more a core does per cycle than a Cortex-A76 with dot product; None if unknown."""
    name = kernel_class(isa)
    return None if name is None else _CLASS_FACTOR[name] * _CORE_SCALE.get(core, 1.0)


def cluster_weight(cluster: CpuCluster) -> float:
    """Relative speed of one core of a cluster: cycles per second times work per cycle."""
    return (cluster.clock_hz or 1e9) * _CORE_SCALE.get(cluster.core, 1.0)


def core_read_rate(core: str) -> float:
    """Bytes per second that one core reads when it has the memory to itself."""
    return _CORE_READ.get(core, _CORE_READ_UNKNOWN)


def is_little(core: str) -> bool:
    """Whether a core is one of the small, in-order ones that stand beside big cores."""
    return core in ("cortex-a53", "cortex-a55", "cortex-a510", "cortex-a520")
