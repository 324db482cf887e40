"""The formats as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from boardfit.edge.errors import UsageError
from boardfit.edge.units import did_you_mean

GGUF, AUTO = "gguf", "auto"


@dataclass(frozen=True)
class Format:
    """One format: the engine that runs it, the model file's name in a bundle, the recipe that a
    plan takes unasked, the names under which board profiles speak of its engine, the class of
    `boardfit.device_profiles.cost.engine_classes` that its speed is estimated with, and for whom it
    is.
    """

    id: str
    engine: str
    file: str
    recipe: str
    profile_engines: tuple[str, ...]
    engine_class: str
    about: str


FORMATS: Mapping[str, Format] = {
    f.id: f
    for f in (
        Format(
            GGUF, "llama_cpp", "model.gguf", "", ("llama_cpp",), "llama.cpp",
            "llama.cpp: runs everywhere, maps its weights",
        ),
        Format(
            "litertlm", "litert", "model.litertlm", "litert_int4_b128_best", ("litert_lm",),
            "litert-lm", "LiteRT-LM: fast prefill on CPUs with dot products; needs Armv8.1 atomics",
        ),
        Format(
            "tflite", "tflite", "model.tflite", "tflite_int4",
            ("litert", "tflite", "tflite_runtime"), "litert-lm",
            "tflite-runtime or ai-edge-litert: the smallest installation, old boards too",
        ),
        Format(
            "onnx", "onnx", "model.onnx", "onnx_int4_b128", ("onnxruntime_genai",),
            "onnxruntime-genai", "ONNX Runtime: where a board's other networks run on it too",
        ),
    )
}  # fmt: skip


def parse_formats(text: str) -> tuple[str, ...]:
    """`gguf,onnx` → ids, without doubles. `auto` stands alone.

    Raises UsageError, with the nearest known id, for an unknown one.
    """
    wanted = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    known = (*FORMATS, AUTO)
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"unknown format {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}"
            )
    if not wanted or (AUTO in wanted and len(wanted) > 1):
        raise UsageError(f"--format {text!r}: name formats, or auto alone")
    return wanted
