"""A small float TFLite network, written field by field: a convolution and two matrices, as a
camera's classifier begins and ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

#: Weights that a quantizer may store: a 3×3 convolution and two matrices.
N_WEIGHTS = 16 * 9 + 64 * 1024 + 4 * 64


def write_picture_network(path: Path) -> Path:
    """`image` [1, 16, 16, 1] → `scores` [1, 4]."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        fan_in = int(np.prod(shape[1:])) or 1
        return (draw.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    graph = _Graph()
    image = graph.tensor("image", [1, 16, 16, 1])
    filters = graph.tensor("filters", [16, 3, 3, 1], normal(16, 3, 3, 1))
    edges = graph.tensor("edges", [1, 8, 8, 16])
    shape = graph.tensor("shape", [2], np.array([1, 1024], np.int32))
    flat = graph.tensor("flat", [1, 1024])
    hidden_matrix = graph.tensor("hidden_matrix", [64, 1024], normal(64, 1024))
    hidden = graph.tensor("hidden", [1, 64])
    score_matrix = graph.tensor("score_matrix", [4, 64], normal(4, 64))
    scores = graph.tensor("scores", [1, 4])
    zeros = {n: graph.tensor(f"zeros_{n}", [n], np.zeros(n, np.float32)) for n in (16, 64, 4)}

    kinds, options = schema.BuiltinOperator, schema.BuiltinOptions
    conv = schema.Conv2DOptionsT()
    conv.strideH = conv.strideW = 2
    conv.dilationHFactor = conv.dilationWFactor = 1
    conv.fusedActivationFunction = schema.ActivationFunctionType.RELU
    graph.operator(kinds.CONV_2D, [image, filters, zeros[16]], edges, options.Conv2DOptions, conv)
    graph.operator(kinds.RESHAPE, [edges, shape], flat, options.ReshapeOptions,
                   schema.ReshapeOptionsT())  # fmt: skip
    for source, matrix, bias, target, last in (
        (flat, hidden_matrix, zeros[64], hidden, False),
        (hidden, score_matrix, zeros[4], scores, True),
    ):
        dense = schema.FullyConnectedOptionsT()
        if not last:
            dense.fusedActivationFunction = schema.ActivationFunctionType.RELU
        graph.operator(kinds.FULLY_CONNECTED, [source, matrix, bias], target,
                       options.FullyConnectedOptions, dense)  # fmt: skip
    path.write_bytes(graph.packed([image], [scores]))
    return path


class _Graph:
    def __init__(self) -> None:
        self._model, self._graph = schema.ModelT(), schema.SubGraphT()
        self._model.version = 3
        self._model.buffers = [schema.BufferT()]
        self._model.operatorCodes = []
        self._graph.tensors, self._graph.operators = [], []
        self._codes: dict[int, int] = {}

    def tensor(self, name: str, shape: list[int], values: Any = None) -> int:
        made, buffer = schema.TensorT(), 0
        if values is not None:
            self._model.buffers.append(schema.BufferT())
            buffer = len(self._model.buffers) - 1
            self._model.buffers[-1].data = np.frombuffer(values.tobytes(), np.uint8)
        made.name, made.shape, made.buffer = name.encode(), shape, buffer
        whole = values is not None and values.dtype == np.int32
        made.type = schema.TensorType.INT32 if whole else schema.TensorType.FLOAT32
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def operator(
        self, kind: int, inputs: list[int], output: int, options_type: int, options: Any
    ) -> None:
        if kind not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = kind
            code.version = 1
            self._codes[kind] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = self._codes[kind]
        made.inputs, made.outputs = inputs, [output]
        made.builtinOptionsType, made.builtinOptions = options_type, options
        self._graph.operators.append(made)

    def packed(self, inputs: list[int], outputs: list[int]) -> bytes:
        self._graph.inputs, self._graph.outputs = inputs, outputs
        self._model.subgraphs = [self._graph]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
