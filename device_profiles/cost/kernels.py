"""CPU kernels: which types are repacked where, and multiply how fast (`kernels.toml`)."""

from collections.abc import Mapping, Set
from typing import Any

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
    """Whether the engine copies a matrix of `n_rows` (ggml's ne[1]) into a faster layout."""
    return any(flags <= isa and n_rows % rows == 0 for flags, rows in _REPACK.get(ggml_type, ()))


# A class that is a multiple of another: (base class, factor).
_DERIVED = {"i8mm": ("dotprod", 1.5), "avx512": ("avx2", 1.8)}
_CORE_READ_UNKNOWN = 10e9


def _measured() -> dict[str, Any]:
    from boardfit.device_profiles.toml_parser import load_toml  # a probe on a board has none

    return load_toml(__package__, "kernels.toml")


def _core_scale(core: str) -> float:
    return float(_measured()["cores"].get(core, {}).get("scale", 1.0))


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
    rates: list[float] | None = _measured()["rates"][base].get(ggml_type)
    if rates is None:
        return None
    return (rates[-1] if repacked else rates[0]) * factor * _core_scale(core)


# Kernel classes against dot product on Arm, for engines of which no rate by type is known: without
# it a product takes four instructions for one.
_CLASS_FACTOR = {"neon": 0.3, "dotprod": 1.0, "i8mm": 1.5, "avx2": 1.0, "avx512": 1.8}


def kernel_factor(isa: Set[str], core: str) -> float | None:
    """How much more a core does per cycle than a Cortex-A76 with dot product; None if unknown."""
    name = kernel_class(isa)
    return None if name is None else _CLASS_FACTOR[name] * _core_scale(core)


def cluster_weight(cluster: CpuCluster) -> float:
    """Relative speed of one core of a cluster: cycles per second times work per cycle."""
    return (cluster.clock_hz or 1e9) * _core_scale(cluster.core)


def core_read_rate(core: str) -> float:
    """Bytes per second that one core reads when it has the memory to itself."""
    return float(_measured()["cores"].get(core, {}).get("read", _CORE_READ_UNKNOWN))


def is_little(core: str) -> bool:
    """Whether a core is one of the small, in-order ones that stand beside big cores."""
    return core in ("cortex-a53", "cortex-a55", "cortex-a510", "cortex-a520")
