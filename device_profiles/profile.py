"""`DeviceProfile`: one board as data, read from `boards/<id>.toml` with every key checked.

What several boards share comes from `socs/<name>.toml` through `extends = "<name>"`. Units are part
of the keys in the files (`ram_mib`, `read_mb_per_s`); only base units (bytes, hertz, bytes per
second, watts) leave this module. None means neither published nor measured.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

MIB = 1024**2

# ISA flags that a cost or an engine build depends on, in the kernel's spelling except where the
# kernel's is obscure (asimddp → dotprod, asimdhp → fp16, atomics → lse).
ISA_FLAGS = frozenset(
    (
        *("neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2", "sme", "lse"),
        *("sse42", "avx", "avx2", "fma", "f16c", "avx_vnni", "amx_int8"),
        *("avx512", "avx512_vnni", "avx512_bf16", "rvv"),
    )
)


class ProfileError(ValueError):
    """A profile file or a device name is not what it should be. The command maps it to exit 3."""


# What a profile's speeds rest on without a measurement.
FROM_SPECIFICATIONS = "from specifications"


@dataclass(frozen=True)
class BoardMemory:
    """RAM in bytes and bandwidth in bytes per second.

    `reserved_bytes` is what firmware, kernel and the stock OS's services keep after boot.
    `bandwidth_by_threads` holds pairs of (threads, bytes per second), ascending, if measured.
    """

    ram_bytes: int
    reserved_bytes: int
    bandwidth_theoretical: float | None = None
    bandwidth_sustained: float | None = None
    bandwidth_by_threads: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class CpuCluster:
    """`count` equal cores. `clock_hz` is the highest default clock, None if unknown."""

    core: str
    count: int
    clock_hz: float | None = None
    isa: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Accelerator:
    """A GPU or NPU that an engine class can use; `memory_bytes` None means it shares the RAM."""

    kind: str  # "cuda", "vulkan", "npu"
    name: str
    cores: int | None = None
    compute_capability: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Storage:
    """Sequential speed of the usual medium, bytes per second."""

    medium: str | None = None
    read: float | None = None
    write: float | None = None


@dataclass(frozen=True)
class Software:
    """The stock system that a bundle meets on the board."""

    os: str | None = None
    libc: str | None = None
    python: str | None = None
    wheel_tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelSpeed:
    """Measured multiply-accumulates per second of a product on `threads` cores together, with
    weights repacked for the CPU or as they are in the file.
    """

    ggml_type: str
    repacked: bool
    threads: int
    macs_per_s: float


@dataclass(frozen=True)
class EngineSupport:
    """Whether an engine runs here; `source` names who tried it, `note` how or why not."""

    engine: str
    runs: bool
    source: str
    note: str = ""


@dataclass(frozen=True)
class DeviceProfile:
    """One board. `sources` maps a fact's dotted key to the text of its `# Source:` comment; `basis`
    names what its speeds rest on: "measured here", "measured on this SoC" or "from specifications".
    """

    id: str
    name: str
    memory: BoardMemory
    clusters: tuple[CpuCluster, ...]
    aliases: tuple[str, ...] = ()
    soc: str | None = None
    accelerator: Accelerator | None = None
    storage: Storage = Storage()
    software: Software = Software()
    sustained_share: float | None = None
    idle_w: float | None = None
    load_w: float | None = None
    engines: tuple[EngineSupport, ...] = ()
    basis: str = FROM_SPECIFICATIONS
    kernel_speeds: tuple[KernelSpeed, ...] = ()
    sources: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def ram_bytes(self) -> int:
        return self.memory.ram_bytes

    @property
    def free_ram_bytes(self) -> int:
        """What one process may use: RAM less what the OS keeps."""
        return self.memory.ram_bytes - self.memory.reserved_bytes

    @property
    def n_cores(self) -> int:
        return sum(cluster.count for cluster in self.clusters)

    @property
    def isa(self) -> frozenset[str]:
        """Flags that every core has: what an engine may use on any core."""
        sets = [cluster.isa for cluster in self.clusters]
        return frozenset.intersection(*sets) if sets else frozenset()

    def engine_support(self, engine: str) -> EngineSupport | None:
        """The tested state of one engine on this board; None when untested."""
        return next((e for e in self.engines if e.engine == engine), None)


def suggest(got: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(got, sorted(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
