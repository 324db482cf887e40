"""Make a graph that tflite-runtime 2.14 runs: no composites, short names, nothing unused.

STABLEHLO_COMPOSITE (operator 206) names a known function and carries its decomposition as another
subgraph. Runtimes that know the function use a fused kernel; older ones do not know the operator.
Putting the decomposition in its place changes nothing that is computed.
"""

import copy
from typing import Any

from ai_edge_litert import schema_py_generated as schema

COMPOSITE = schema.BuiltinOperator.STABLEHLO_COMPOSITE


def inline_composites(model: Any) -> int:
    """Replace every composite by its decomposition, nested ones too, and drop what nothing refers
    to any more.
    """
    count = 0
    for graph in model.subgraphs:
        while any(_code(model, op) == COMPOSITE for op in graph.operators):
            operators: list[Any] = []
            for operator in graph.operators:
                if _code(model, operator) == COMPOSITE:
                    operators += _decompose(model, graph, operator)
                    count += 1
                else:
                    operators.append(operator)
            graph.operators = operators
    _drop_unused_subgraphs(model)
    _drop_unused_codes(model)
    return count


def _code(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _decompose(model: Any, graph: Any, composite: Any) -> list[Any]:
    inner = model.subgraphs[composite.builtinOptions2.decompositionSubgraphIndex]
    outer_of = dict(zip(map(int, inner.inputs), map(int, composite.inputs), strict=True))
    outer_of |= dict(zip(map(int, inner.outputs), map(int, composite.outputs), strict=True))
    for i, tensor in enumerate(inner.tensors):
        if i not in outer_of:
            graph.tensors.append(copy.copy(tensor))
            outer_of[i] = len(graph.tensors) - 1
    operators = []
    for operator in inner.operators:
        own = copy.copy(operator)
        own.inputs = [outer_of[int(i)] if i >= 0 else -1 for i in operator.inputs]
        own.outputs = [outer_of[int(i)] for i in operator.outputs]
        operators.append(own)
    return operators


def _drop_unused_subgraphs(model: Any) -> None:
    kept = sorted({signature.subgraphIndex for signature in model.signatureDefs})
    new = {old: i for i, old in enumerate(kept)}
    model.subgraphs = [model.subgraphs[i] for i in kept]
    for signature in model.signatureDefs:
        signature.subgraphIndex = new[signature.subgraphIndex]


def _drop_unused_codes(model: Any) -> None:
    operators = [op for graph in model.subgraphs for op in graph.operators]
    kept = sorted({op.opcodeIndex for op in operators})
    new = {old: i for i, old in enumerate(kept)}
    model.operatorCodes = [model.operatorCodes[i] for i in kept]
    # One decomposition's operators were copied, but an operator may be met twice all the same.
    for operator in {id(op): op for op in operators}.values():
        operator.opcodeIndex = new[operator.opcodeIndex]


def shorten_names(model: Any) -> None:
    """Tensors are named after Python modules, often 200 bytes each and a third of the graph.
    Inputs and outputs keep their names, the rest are numbered.
    """
    for graph in model.subgraphs:
        kept = set(map(int, graph.inputs)) | set(map(int, graph.outputs))
        for i, tensor in enumerate(graph.tensors):
            if i not in kept:
                tensor.name = b"t%d" % i
