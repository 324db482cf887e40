"""Families that LiteRT can be made of, by `model_type` in `config.json`. docs/formats.md has the
table of what each one needed, and of every gap and its owner; tests/litert checks it.
"""

from __future__ import annotations

from boardfit.edge.errors import UnsupportedModelError
from boardfit.edge.units import did_you_mean, printable

#: `model_type` → what people call it.
FAMILIES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma3_text": "Gemma 3",
    "phi3": "Phi-3",
    "smollm3": "SmolLM3",
    "granite": "Granite",
    "lfm2": "LFM2",
}


def check_family(model_type: str) -> None:
    """Raises UnsupportedModelError that names those that are supported, and offers GGUF."""
    if model_type in FAMILIES:
        return
    raise UnsupportedModelError(
        f"LiteRT cannot be made of {printable(model_type)!r} models."
        f"{did_you_mean(model_type, FAMILIES)} It can of: {', '.join(FAMILIES.values())}",
        next_step="build a GGUF: --format gguf",
    )
