"""Weights of any TFLite network to 8 or 4 bits, through ai-edge-quantizer: int8 activations are
computed on the fly, so no calibration is needed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boardfit.converters.formats.network.worker.compare import compare_outputs
from boardfit.edge.bench.network_inputs import InputSpec, make_values, resolve_shapes
from boardfit.edge.errors import UnsupportedModelError


def run(request: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Quantize `request["model"]` into the folder `request["output"]`, like `onnx.run`."""
    from ai_edge_quantizer import quantizer, recipe

    source, bits = Path(request["model"]), int(request["bits"])
    report.say(f"storing weights in {bits} bits")
    rules = recipe.dynamic_wi8_afp32() if bits == 8 else recipe.dynamic_wi4_afp32()
    work = quantizer.Quantizer(str(source), rules)
    try:
        result = work.quantize()
    except (RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{source.name}: ai-edge-quantizer does not take it: {error}",
            next_step="a network that is quantized already cannot be quantized again",
        ) from None
    target = Path(request["output"]) / source.name
    result.export_model(str(target), overwrite=True)
    smaller = target.stat().st_size < source.stat().st_size
    return {
        "counts": {f"int{bits}_channel": _n_quantized(target)} if smaller else {},
        "errors": _errors(source, target, request),
        "file": target.name,
    }


def _n_quantized(path: Path) -> int:
    """Values of the tensors that have more scales than one: weights per channel."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    return sum(
        int(np.prod(d["shape"]))
        for d in Interpreter(model_path=str(path)).get_tensor_details()
        if len(d["quantization_parameters"]["scales"]) > 1
    )


def _errors(source: Path, target: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    outputs, names = [], list[str]()
    for path in (source, target):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path))
        details = interpreter.get_input_details()
        inputs = [
            InputSpec(
                d["name"],
                d["dtype"].__name__.rstrip("_"),
                tuple(None if n < 0 else int(n) for n in d["shape_signature"]),
            )
            for d in details
        ]
        shapes = resolve_shapes(inputs, {k: tuple(v) for k, v in request["shapes"].items()})
        values = make_values(inputs, shapes)
        for detail in details:
            interpreter.resize_tensor_input(detail["index"], shapes[detail["name"]])
        interpreter.allocate_tensors()
        for detail in details:
            interpreter.set_tensor(detail["index"], values[detail["name"]])
        interpreter.invoke()
        found = interpreter.get_output_details()
        names = [d["name"] for d in found]
        outputs.append([interpreter.get_tensor(d["index"]) for d in found])
    found_errors: dict[str, Any] = compare_outputs(names, *outputs)
    return found_errors
