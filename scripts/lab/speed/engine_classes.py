"""Classes of the engines in published rows that the kit does not run, and those that it does."""

from __future__ import annotations

from collections.abc import Mapping

from boardfit.device_profiles.cost.engine_classes import (
    CUDA,
    LITERT_LM,
    LLAMA_CPP,
    OLD_CUDA,
    QNN,
    RKLLM,
    EngineClass,
    make_accelerator,
)

# Engines with a fixed number of threads when none is asked for: LiteRT and MediaPipe take four.
FIXED_THREADS: Mapping[str, int] = {"litert-lm": 4, "mediapipe": 4}

_CPU = (
    LLAMA_CPP,
    LITERT_LM,
    # Before run-time repacking (ggml-org/llama.cpp#10446, November 2024).
    EngineClass("llama.cpp-2024", 0.88, kernel_scale=0.62, repacks=False),
    # The same with files repacked beforehand (Q4_0_4_4), dropped when repacking came.
    EngineClass("llama.cpp-2024-repacked", 0.88, kernel_scale=0.85),
    # Built for plain armv8-a, as app projects do that forget the flags.
    EngineClass("llama.cpp-baseline", isa_limit=frozenset({"neon", "sse42"})),
    EngineClass(
        "mediapipe",
        0.83,
        {"float": 2.8, "int8": 7.4, "int4": 4.5},
        isa_limit=LITERT_LM.isa_limit,
        token_s=5e-3,
    ),
    EngineClass("executorch", 1.0, {"float": 2.5, "int8": 7.0, "int4": 7.3}),
    EngineClass("mnn", 1.0, {"float": 4.0, "int8": 10.0, "int4": 10.0}),
    # Table look-ups: half the bits take half the time.
    EngineClass("t-mac", 1.0, {"int8": 3.5, "int4": 7.0, "int2": 14.0, "float": 1.7}),
    EngineClass("powerinfer", 1.0, {"float": 4.0, "int8": 10.0, "int4": 10.0}),
    EngineClass("cactus", 1.0, {"float": 4.0, "int8": 5.5, "int4": 5.5}),
    EngineClass("distributed-llama", 0.8, {"float": 2.0, "int8": 3.0, "int4": 4.0}),
)
_ACCELERATORS = (
    *(CUDA, OLD_CUDA, RKLLM, QNN),
    make_accelerator("mlc-cuda", 0.8, None, 1e-3),
    make_accelerator("vllm-cuda", 0.6, None, 1e-3),
    make_accelerator("litert-gpu", 0.45, 20.0, 3e-3),
    make_accelerator("llama.cpp-gpu", 0.5, 8.0, 2e-3),
    make_accelerator("other-gpu", 0.5, None, 2e-3),
    make_accelerator("qnn-npu-w4", 0.35, None, 2e-3),
    make_accelerator("litert-npu", 0.5, None, 2e-3),
    make_accelerator("other-npu", 0.5, None, 2e-3),
)
ENGINE_CLASSES: Mapping[str, EngineClass] = {e.name: e for e in (*_CPU, *_ACCELERATORS)}
