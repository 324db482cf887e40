"""Recognise a checkpoint whose weights are quantized, by its tensors.

The tensors decide. `quantization_config` alone is not believed: a model that was trained in 4 bits
and merged in 16 keeps it in config.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from boardfit.edge.errors import UnsupportedModelError
from boardfit.edge.files.safetensors import SafetensorsHeader
from boardfit.edge.units import printable

# What a method stores beside a weight, or in its place.
_SIDE_TENSORS = {
    (".qweight", ".qzeros", ".g_idx"): "GPTQ or AWQ",
    (".weight.absmax", ".weight.quant_map", ".SCB"): "bitsandbytes",
    (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"):
        "bitsandbytes",
    (".weight_packed", ".weight_shape", ".weight_zero_point"): "compressed-tensors",
    (".weight_scale_inv", ".weight_scale", ".input_scale"): "FP8 or compressed-tensors",
    (".biases",): "MLX",
    ("_proj_blocks", "_proj_scales"): "MXFP4",
}  # fmt: skip
_FLOATS = ("BF16", "F16", "F32", "F64")
_NEXT_STEP = "use the model's unquantized checkpoint (BF16, F16 or F32)"


def refuse_quantized_tensors(
    config: Mapping[str, Any], headers: Iterable[SafetensorsHeader]
) -> None:
    """Raises UnsupportedModelError for checkpoints whose weights are already quantized."""
    found = _find_quantized(headers)
    if found is None:
        return
    tensor, method = found
    named = stated_method(config)
    how = f"quantization_config: {named}" if named else method
    raise UnsupportedModelError(
        f"the checkpoint is already quantized ({how}; tensor {printable(tensor)}); expected "
        "BF16, F16 or F32, because quantizing it again would lose quality twice",
        next_step=_NEXT_STEP,
    )


def stated_method(config: Mapping[str, Any]) -> str | None:
    """The method that config.json states; None where it states none."""
    for key in ("quantization_config", "quantization", "compression_config"):
        stated = config.get(key)
        if stated:
            method = stated.get("quant_method") if isinstance(stated, Mapping) else None
            return printable(str(method or "method not named"), 40)
    return None


def _find_quantized(headers: Iterable[SafetensorsHeader]) -> tuple[str, str] | None:
    """A tensor that only a quantized checkpoint has, and the method that it is known from."""
    for header in headers:
        for name, entry in header.tensors.items():
            for endings, method in _SIDE_TENSORS.items():
                if name.endswith(endings):
                    return name, method
            # Integers of one dimension are buffers, such as position_ids.
            if entry.dtype not in _FLOATS and len(entry.shape) > 1:
                return name, f"stored as {printable(entry.dtype)}"
    return None
