"""Weights of any ONNX network to 8 or 4 bits. Activations stay floats, so no calibration is needed.

MatMul, Gemm           MatMulNBits, blocks of 32 (4 bits: scales searched)
Conv, LSTM, GRU …      int8 per output channel, DequantizeLinear in front
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from boardfit.converters.formats.network.worker.compare import compare_outputs
from boardfit.converters.formats.onnx.recipe import OnnxRecipe, OnnxScheme
from boardfit.converters.formats.onnx.worker.graph import (
    add_initializer,
    quantize_graph,
    substitute,
)
from boardfit.edge.bench.network_inputs import InputSpec, make_values, resolve_shapes

#: Operators whose weights (by input) are stored in 8 bits; the axis of the output channels.
_CHANNELS = {
    "Conv": {1: 0},
    "ConvTranspose": {1: 1},
    "LSTM": {1: 1, 2: 1},
    "GRU": {1: 1, 2: 1},
    "RNN": {1: 1, 2: 1},
}
_MIN_WEIGHTS = 1024  # smaller tensors cost more in operators than they save
_MIN_OPSET = 13  # DequantizeLinear with an axis
_BLOCK = 32


def run(request: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Quantize `request["model"]` into the folder `request["output"]` with `bits` 4 or 8 and
    MatMulNBits of `accuracy_level`.

    Returns `counts` (weights by kind of storage) and `errors` (see `compare_outputs`).
    """
    source, bits = Path(request["model"]), int(request["bits"])
    report.say("reading the network")
    model = ir.load(source)
    if model.graph.opset_imports.get("", 0) < _MIN_OPSET:
        model = _raise_opset(source)
    gemm_to_matmul(model.graph)
    scheme = OnnxScheme(bits, _BLOCK, symmetric=bits == 8, search=bits == 4)
    report.say(f"storing weights in {bits} bits")
    recipe = OnnxRecipe("network", "", scheme, scheme, scheme)
    counts = quantize_graph(model, recipe, int(request["accuracy_level"]), report.progress)
    for kind, n in channels_to_int8(model.graph).items():
        counts[kind] = counts.get(kind, 0) + n
    target = Path(request["output"]) / source.name
    if counts:
        if any(key.startswith("int4_b") or "_b" in key for key in counts):
            model.graph.opset_imports.setdefault("com.microsoft", 1)
        model.graph.sort()
        model.ir_version = max(model.ir_version, 8)
        large = sum(v.const_value.nbytes for v in model.graph.initializers.values()
                    if v.const_value is not None) > 1 << 30  # fmt: skip
        ir.save(model, target, external_data=f"{target.name}.data" if large else None)
    errors = _errors(source, target, request) if counts else {}
    return {"counts": counts, "errors": errors, "file": target.name}


def _raise_opset(source: Path) -> ir.Model:
    import onnx
    from onnx import version_converter

    return ir.from_proto(version_converter.convert_version(onnx.load(source), _MIN_OPSET))


def gemm_to_matmul(graph: ir.Graph) -> None:
    """A Gemm with a constant matrix, alpha = beta = 1, becomes MatMul and Add."""
    for node in list(graph):
        if node.op_type != "Gemm" or node.domain not in ("", "ai.onnx"):
            continue
        value = node.inputs[1]
        plain = (
            node.attributes.get_float("alpha", 1.0) == 1.0
            and node.attributes.get_float("beta", 1.0) == 1.0
            and node.attributes.get_int("transA", 0) == 0
        )
        if value is None or value.const_value is None or not plain:
            continue
        matrix = value.const_value.numpy()
        if matrix.size < _MIN_WEIGHTS:
            continue
        if node.attributes.get_int("transB", 0):
            matrix = np.ascontiguousarray(matrix.T)
        weights = graph.initializers.get(f"{value.name}_matrix")
        if weights is None:
            weights = add_initializer(graph, f"{value.name}_matrix", matrix)
        product = ir.node("MatMul", [node.inputs[0], weights], name=f"{node.name}/MatMul")
        new = [product]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            product.outputs[0].name = f"{node.name}/MatMul_output"
            new.append(ir.node("Add", [product.outputs[0], bias], name=f"{node.name}/Add"))
        substitute(graph, node, new)


def channels_to_int8(graph: ir.Graph) -> dict[str, int]:
    """Float weights of convolutions and recurrent layers to int8 with a scale per channel."""
    counts: dict[str, int] = {}
    done: dict[str, ir.Value] = {}
    for node in list(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        for position, axis in _CHANNELS.get(node.op_type, {}).items():
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is None or value.const_value is None or value.name is None:
                continue
            weights = value.const_value.numpy()
            if weights.dtype != np.float32 or weights.size < _MIN_WEIGHTS:
                continue
            if value.name not in done:
                done[value.name] = _add_dequantize(graph, node, value.name, weights, axis)
                counts["int8_channel"] = counts.get("int8_channel", 0) + weights.size
            node.replace_input_with(position, done[value.name])
    for name in [n for n, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    return counts


def _add_dequantize(graph: ir.Graph, node: ir.Node, name: str, weights: Any, axis: int) -> ir.Value:
    others = tuple(i for i in range(weights.ndim) if i != axis)
    scale = np.maximum(np.abs(weights).max(axis=others), 1e-12).astype(np.float32) / 127
    shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
    codes = np.clip(np.rint(weights / scale.reshape(shape)), -127, 127).astype(np.int8)
    values = [
        add_initializer(graph, f"{name}_{suffix}", array)
        for suffix, array in (("int8", codes), ("scale", scale))
    ]
    dequantize = ir.node("DequantizeLinear", values, {"axis": axis}, name=f"{name}/Dequantize")
    dequantize.outputs[0].name = f"{name}_float"
    dequantize.outputs[0].dtype = ir.DataType.FLOAT
    dequantize.outputs[0].shape = ir.Shape(weights.shape)
    graph.insert_before(graph[0], dequantize)
    return dequantize.outputs[0]


def _errors(source: Path, target: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs of the quantized network against the float one's on the same inputs."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (source, target)
    ]
    kinds = {"float": "float32", "double": "float64"}
    inputs = [
        InputSpec(
            i.name,
            kinds.get(kind := i.type.removeprefix("tensor(").removesuffix(")"), kind),
            tuple(i.shape),
        )
        for i in sessions[0].get_inputs()
    ]
    shapes = resolve_shapes(inputs, {k: tuple(v) for k, v in request["shapes"].items()})
    feeds = make_values(inputs, shapes)
    names = [output.name for output in sessions[0].get_outputs()]
    reference, got = (session.run(names, feeds) for session in sessions)
    found: dict[str, Any] = compare_outputs(names, reference, got)
    return found
