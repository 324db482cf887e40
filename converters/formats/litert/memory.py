"""How much private memory a LiteRT conversion takes, predicted before it starts.

Measured law (`scripts/bench_litert_convert`, litert-torch 0.9.4, torch 2.13, x86-64): importing
torch and the converter, then what tracing and lowering keep for every layer of every signature, and
at the end one matrix at a time. Weights are mapped and do not count. Rounding by calibration text
holds one layer in float32, the sums of its inputs and copies of the largest matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boardfit.device_profiles.shape import ModelShape
from boardfit.edge.errors import DoesNotFitError
from boardfit.edge.units import MIB, format_bytes

_BASE = 480 * MIB
_PER_LAYER_AND_SIGNATURE = 6 * MIB
_CHUNKS = 128 * MIB  # rows of one matrix in float32, and what choosing their scales takes
_F32 = 4


def conversion_bytes(
    shape: ModelShape, *, n_signatures: int, gptq: bool, n_calibration: int = 0
) -> int:
    """Predicted peak of private memory in bytes. `n_signatures` are the prefills and decode;
    `n_calibration` is the number of calibration tokens.
    """
    n_ff = max(shape.n_ff, shape.n_embd)
    traced = _BASE + _PER_LAYER_AND_SIGNATURE * shape.n_layer * n_signatures
    largest_row_block = shape.n_vocab * shape.n_embd  # packed to one byte a value
    streamed = traced + _CHUNKS + 2 * largest_row_block
    if not gptq:
        return streamed
    layer = _layer_parameters(shape) * _F32
    sums = n_ff * n_ff * _F32 * 5  # H, its sorted copy, two factors, one being made
    copies = n_ff * shape.n_embd * _F32 * 5
    activations = n_calibration * (6 * n_ff + 8 * shape.n_embd) * _F32
    rounded = shape.n_params * 5 // 8
    return max(streamed, traced + layer + sums + copies + activations) + rounded


def check_memory(predicted: int, available: int, what: Mapping[str, Any]) -> None:
    """Raises DoesNotFitError with the shortfall and a next step."""
    if predicted <= available:
        return
    steps = []
    if what.get("gptq"):
        steps.append("a recipe without calibration (litert_int4_b32)")
    if what.get("n_signatures", 2) > 2:
        steps.append("fewer prefill lengths")
    steps.append("a GGUF (--format gguf), which converts in 0.3 GiB")
    raise DoesNotFitError(
        f"converting to LiteRT takes about {format_bytes(predicted)} of memory; "
        f"{format_bytes(available)} are free",
        shortfall_bytes=predicted - available,
        next_step="close other programs, or choose " + ", or ".join(steps),
    )


def _layer_parameters(shape: ModelShape) -> int:
    return max(1, (shape.n_params - shape.n_vocab * shape.n_embd) // max(1, shape.n_layer))
