"""Engine classes: a handful of figures per runtime that set it apart from the reference.

The reference is llama.cpp with run-time repacking, for which `kernels` has the rate of each type.
Fitted on published rows only (docs/validation shows how well); no figure is of a single board.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from boardfit.device_profiles.cost.kernels import is_repacked, kernel_factor, macs_per_cycle

_KINDS = {
    **dict.fromkeys(("F32", "F16", "BF16"), "float"),
    **{"Q8_0": "int8", "I8": "int8", "I2": "int2"},
}


@dataclass(frozen=True)
class Bounds:
    """Relative: the truth lies between estimate / (1 + bound) and estimate × (1 + bound)."""

    decode: float
    prefill: float


# Family → bounds, no less than the conformal 92 % quantile of the errors that published rows have
# when their board's SoC (of an accelerator: or their model) is left out; see
# scripts/lab/speed/validation_bounds.py (scripts/validate_predictions prints both). Prefill on CUDA
# and NPUs has too few rows for a quantile.
_BOUNDS: Mapping[str, Bounds] = {
    "llama.cpp": Bounds(0.35, 0.45),
    "other CPU runtimes": Bounds(0.65, 1.9),
    "cuda": Bounds(0.9, 1.5),
    "npu": Bounds(0.75, 1.5),
    "gpu": Bounds(0.8, 3.2),
}
_UNUSUAL_BOUNDS: Mapping[str, Bounds] = {**_BOUNDS, "llama.cpp": Bounds(0.85, 0.72)}


@dataclass(frozen=True)
class EngineClass:
    """`read_share`: of the sustained bandwidth (CPU) or of the theoretical one (accelerator).
    `rates`: multiply-accumulates per cycle of a Cortex-A76 in prefill by the kind of weight (float,
    int8, int4; int2 where it differs), None for llama.cpp's own times `kernel_scale`. `isa_limit`:
    the build uses no other flags. `macs_per_byte`: prefill rate by bandwidth, None without a
    published row.
    """

    name: str
    read_share: float = 1.0
    rates: Mapping[str, float] | None = None
    kernel_scale: float = 1.0
    repacks: bool = True
    isa_limit: frozenset[str] | None = None
    macs_per_byte: float | None = None
    layer_s: float = 25e-6
    token_s: float = 150e-6
    on_cpu: bool = True

    @property
    def family(self) -> str:
        """Engine classes that err alike: their residuals are pooled for the bounds."""
        if self.on_cpu:
            return "llama.cpp" if self.name.startswith("llama.cpp") else "other CPU runtimes"
        return next((kind for kind in ("cuda", "npu") if kind in self.name), "gpu")

    def bounds(self, *, unusual: bool = False) -> Bounds:
        """How far its figures may be off. `unusual`: layers with a state, per-layer embeddings."""
        return _UNUSUAL_BOUNDS[self.family] if unusual else _BOUNDS[self.family]

    def isa(self, flags: Set[str]) -> frozenset[str]:
        """The flags of a CPU that this engine's kernels use."""
        return frozenset(flags if self.isa_limit is None else flags & self.isa_limit)

    def rate(
        self, ggml_type: str, n_rows: int, isa: Set[str], core: str, *, repack: bool
    ) -> float | None:
        """Multiply-accumulates per cycle and core in a large product, None if unknown."""
        used = self.isa(isa)
        if self.rates is not None:
            kind = _KINDS.get(ggml_type, "int4")
            # 8-bit matrix instructions do nothing for floats.
            factor = kernel_factor(used - {"i8mm"} if kind == "float" else used, core)
            return None if factor is None else self.rates.get(kind, self.rates["int4"]) * factor
        repacked = repack and self.repacks and is_repacked(ggml_type, n_rows, used)
        rate = macs_per_cycle(ggml_type, used, core, repacked=repacked)
        return None if rate is None else rate * self.kernel_scale


LLAMA_CPP = EngineClass("llama.cpp", 0.95)

LITERT_LM = EngineClass(
    "litert-lm",
    0.75,
    {"float": 2.8, "int8": 12.0, "int4": 24.0},
    isa_limit=frozenset({"neon", "fp16", "dotprod", "avx2", "avx512_vnni"}),
    token_s=3e-3,
)


def make_accelerator(
    name: str, read_share: float, macs_per_byte: float | None, token_s: float
) -> EngineClass:
    return EngineClass(
        name, read_share, macs_per_byte=macs_per_byte, layer_s=0.0, token_s=token_s, on_cpu=False
    )


CUDA = make_accelerator("llama.cpp-cuda", 0.6, 30.0, 1e-3)
# Before compute capability 7 there are neither tensor cores nor (6.0) integer dot products.
OLD_CUDA = make_accelerator("llama.cpp-cuda-old", 0.18, 3.2, 1e-3)
RKLLM = make_accelerator("rkllm-npu", 0.73, None, 3e-3)
QNN = make_accelerator("qnn-npu", 0.63, None, 2e-3)
