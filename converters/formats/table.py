"""The formats as data: a row each, whose class is imported when it is used."""

from __future__ import annotations

from boardfit.converters.formats.base import FormatRow
from boardfit.edge.errors import UsageError
from boardfit.edge.units import did_you_mean

GGUF, AUTO = "gguf", "auto"

FORMATS: dict[str, FormatRow] = {
    row.id: row
    for row in (
        FormatRow(
            GGUF, "boardfit.converters.formats.gguf.format:GgufFormat", "llama_cpp", "model.gguf",
            "", ("llama_cpp",), "llama.cpp: runs everywhere, maps its weights", is_streamed=True,
        ),
        FormatRow(
            "litertlm", "boardfit.converters.formats.litert.format:LitertLmFormat", "litert",
            "model.litertlm", "litert_int4_b128_best", ("litert_lm",),
            "LiteRT-LM: fast prefill on CPUs with dot products; needs Armv8.1 atomics",
        ),
        FormatRow(
            "tflite", "boardfit.converters.formats.litert.format:TfliteFormat", "tflite",
            "model.tflite", "tflite_int4", ("litert", "tflite", "tflite_runtime"),
            "tflite-runtime or ai-edge-litert: the smallest installation, old boards too",
        ),
        FormatRow(
            "onnx", "boardfit.converters.formats.onnx.format:OnnxFormat", "onnx", "model.onnx",
            "onnx_int4_b128", ("onnxruntime_genai",),
            "ONNX Runtime: where a board's other networks run on it too",
        ),
    )
}  # fmt: skip


def format_of_engine(engine: str) -> FormatRow:
    """The format that an engine runs."""
    return next(row for row in FORMATS.values() if row.engine == engine)


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
