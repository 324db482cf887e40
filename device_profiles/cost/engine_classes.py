"""Engine classes: a handful of figures per runtime that set it apart from the reference.

The reference is llama.cpp with run-time repacking, for which `kernels` has the rate of each type.
Another CPU runtime is described by the share of the sustained bandwidth that it reaches and by its
own rates; an accelerator by shares of the board's theoretical bandwidth. Fitted on published rows
only (docs/validation shows how well); no figure belongs to a single board.
"""

from __future__ import annotations

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
    the build uses no other flags. `macs_per_byte`: an accelerator's prefill rate by its bandwidth,
    None where no published row is a basis for it.
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
        """How far its figures may be off. `unusual`: a model with per-layer embeddings or layers
        that keep a state, whose costs beside the products are not modelled.
        """
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

_BASELINE_ISA = frozenset({"neon", "sse42"})
_WITHOUT_I8MM = frozenset({"neon", "fp16", "dotprod", "avx2", "avx512_vnni"})
# Engines with a fixed number of threads when none is asked for: LiteRT and MediaPipe take four.
FIXED_THREADS: Mapping[str, int] = {"litert-lm": 4, "mediapipe": 4}

CPU_ENGINES: Mapping[str, EngineClass] = {
    engine.name: engine
    for engine in (
        LLAMA_CPP,
        # Before run-time repacking (ggml-org/llama.cpp#10446, November 2024).
        EngineClass("llama.cpp-2024", 0.88, kernel_scale=0.62, repacks=False),
        # The same with files repacked beforehand (Q4_0_4_4), dropped when repacking came.
        EngineClass("llama.cpp-2024-repacked", 0.88, kernel_scale=0.85),
        # Built for plain armv8-a, as app projects do that forget the flags.
        EngineClass("llama.cpp-baseline", isa_limit=_BASELINE_ISA),
        EngineClass(
            "litert-lm",
            0.75,
            {"float": 2.8, "int8": 12.0, "int4": 24.0},
            isa_limit=_WITHOUT_I8MM,
            token_s=3e-3,
        ),
        EngineClass(
            "mediapipe",
            0.83,
            {"float": 2.8, "int8": 7.4, "int4": 4.5},
            isa_limit=_WITHOUT_I8MM,
            token_s=5e-3,
        ),
        EngineClass("executorch", 1.0, {"float": 2.5, "int8": 7.0, "int4": 7.3}),
        EngineClass(
            "mnn",
            1.0,
            {"float": 4.0, "int8": 10.0, "int4": 10.0},
        ),
        # Table look-ups: half the bits take half the time.
        EngineClass(
            "t-mac",
            1.0,
            {"int8": 3.5, "int4": 7.0, "int2": 14.0, "float": 1.7},
        ),
        EngineClass("powerinfer", 1.0, {"float": 4.0, "int8": 10.0, "int4": 10.0}),
        EngineClass("cactus", 1.0, {"float": 4.0, "int8": 5.5, "int4": 5.5}),
        EngineClass("distributed-llama", 0.8, {"float": 2.0, "int8": 3.0, "int4": 4.0}),
    )
}

_ACCELERATED: Mapping[str, tuple[float, float | None, float]] = {
    # name: share of the theoretical bandwidth, MACs per byte, seconds per token
    "llama.cpp-cuda": (0.6, 30.0, 1e-3),
    # Before compute capability 7 there are neither tensor cores nor (6.0) integer dot products.
    "llama.cpp-cuda-old": (0.18, 3.2, 1e-3),
    "mlc-cuda": (0.8, None, 1e-3),
    "vllm-cuda": (0.6, None, 1e-3),
    "litert-gpu": (0.45, 20.0, 3e-3),
    "llama.cpp-gpu": (0.5, 8.0, 2e-3),
    "other-gpu": (0.5, None, 2e-3),
    "rkllm-npu": (0.73, None, 3e-3),
    "qnn-npu": (0.63, None, 2e-3),
    "qnn-npu-w4": (0.35, None, 2e-3),
    "litert-npu": (0.5, None, 2e-3),
    "other-npu": (0.5, None, 2e-3),
}
ACCELERATORS: Mapping[str, EngineClass] = {
    name: EngineClass(
        name,
        share,
        macs_per_byte=balance,
        layer_s=0.0,
        token_s=token_s,
        on_cpu=False,
    )
    for name, (share, balance, token_s) in _ACCELERATED.items()
}
ENGINE_CLASSES: Mapping[str, EngineClass] = {**CPU_ENGINES, **ACCELERATORS}
