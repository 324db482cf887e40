"""Quantize a float graph of the model builder, one matrix at a time.

Every MatMul with a constant matrix becomes MatMulNBits, the embedding's Gather becomes
GatherBlockQuantized. Where embedding and output matrix are tied they share one set of bytes. Scales
are stored in half precision, with a Cast in front that the runtime folds away when it loads.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from boardfit.converters.formats.onnx.recipe import OnnxRecipe, OnnxScheme
from boardfit.converters.formats.onnx.worker.rounding import Blocks, quantize
from boardfit.edge.terminal.progress import Progress

_DOMAIN = "com.microsoft"


def quantize_graph(
    model: ir.Model, recipe: OnnxRecipe, accuracy_level: int, progress: Progress | None = None
) -> dict[str, int]:
    """Quantize `model` in place, with MatMulNBits of `accuracy_level`. Returns the weights by kind
    of storage (`int4_b32`).
    """
    graph = model.graph
    matrices = [node for node in graph if _matrix(node) is not None]
    total = sum(_n_weights(node) for node in matrices)
    done, counts, stored = 0, dict[str, int](), dict[str, _Stored]()
    for node in matrices:
        value = node.inputs[1]
        assert value is not None and value.const_value is not None and value.name is not None
        scheme, n_weights = recipe.scheme_of_node(node.name or ""), _n_weights(node)
        weights = np.asarray(value.const_value.numpy()).T
        scheme = scheme.fitting(weights.shape[1])
        blocks = quantize(weights, **vars(scheme))
        del weights
        stored[value.name] = kept = _store(graph, value.name, blocks)
        _replace_matmul(graph, node, kept, accuracy_level)
        _count(counts, scheme, n_weights)
        done += n_weights
        if progress:
            progress(done, total)
    _replace_embedding(graph, recipe, stored, counts)
    _drop_unused(graph)
    return counts


def shorten_rope(model: ir.Model, n_ctx: int) -> None:
    """Keep the first `n_ctx` rows of the rotary tables, which the builder makes for the whole
    trained context.
    """
    for name, value in model.graph.initializers.items():
        if not re.fullmatch(r"(cos|sin)_cache(_global|_local)?", name) or value.const_value is None:
            continue
        table = value.const_value
        if len(table.shape) == 2 and int(table.shape[0]) > n_ctx:
            value.const_value = ir.tensor(np.ascontiguousarray(table.numpy()[:n_ctx]), name=name)
            value.shape = ir.Shape((n_ctx, int(table.shape[1])))


# ---- one matrix ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    blocks: Blocks


def _matrix(node: ir.Node) -> ir.Value | None:
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return None
    value = node.inputs[1]
    if value is None or value.const_value is None or len(value.const_value.shape) != 2:
        return None
    return value


def _n_weights(node: ir.Node) -> int:
    value = node.inputs[1]
    assert value is not None and value.const_value is not None
    return int(np.prod([int(d) for d in value.const_value.shape]))


def _store(graph: ir.Graph, name: str, blocks: Blocks) -> _Stored:
    codes = add_initializer(graph, f"{name}_Q{blocks.bits}", blocks.codes)
    scales = add_initializer(graph, f"{name}_scales", blocks.scales)
    cast = ir.node("Cast", [scales], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_scales/Cast")
    graph.insert_before(graph[0], cast)
    scales = cast.outputs[0]
    scales.name = f"{name}_scales_f32"
    scales.dtype, scales.shape = ir.DataType.FLOAT, ir.Shape(blocks.scales.shape)
    zeros = None if blocks.zeros is None else add_initializer(graph, f"{name}_zp", blocks.zeros)
    return _Stored(codes, scales, zeros, blocks)


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _replace_matmul(graph: ir.Graph, node: ir.Node, kept: _Stored, accuracy_level: int) -> None:
    inputs: list[ir.Value | None] = [node.inputs[0], kept.codes, kept.scales]
    inputs += [kept.zeros] if kept.zeros is not None else []
    blocks = kept.blocks
    new = ir.node(
        "MatMulNBits",
        inputs,
        {
            "K": blocks.n_columns,
            "N": blocks.codes.shape[0],
            "bits": blocks.bits,
            "block_size": blocks.block,
            "accuracy_level": accuracy_level,
        },
        domain=_DOMAIN,
        name=f"{node.name}_Q{blocks.bits}",
    )
    substitute(graph, node, [new])


def substitute(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put `new` in the place of `old`; the last one's output takes over the name."""
    output, name = new[-1].outputs[0], old.outputs[0].name
    if old.outputs[0].dtype is not None:
        output.dtype = old.outputs[0].dtype
    output.shape = old.outputs[0].shape
    ir.convenience.replace_nodes_and_values(graph, old, [old], list(new), old.outputs, [output])
    output.name = name


# ---- embedding -----------------------------------------------------------------------------------


def _replace_embedding(
    graph: ir.Graph, recipe: OnnxRecipe, stored: Mapping[str, _Stored], counts: dict[str, int]
) -> None:
    node = next((n for n in graph if n.name == "/model/embed_tokens/Gather"), None)
    if node is None or node.inputs[0] is None:
        return
    source = node.inputs[0]
    transpose = source.producer()
    if transpose is not None and transpose.op_type == "Transpose":
        tied = transpose.inputs[0]
        assert tied is not None and tied.name is not None
        kept = stored[tied.name]
    else:
        assert source.const_value is not None and source.name is not None
        scheme = recipe.embedding.fitting(int(source.const_value.shape[1]))
        blocks = quantize(np.asarray(source.const_value.numpy()), **vars(scheme))
        kept = _store(graph, source.name, blocks)
        _count(counts, scheme, int(np.prod(source.const_value.shape)))
    substitute(graph, node, _gather(graph, node, kept))


def _gather(graph: ir.Graph, node: ir.Node, kept: _Stored) -> list[ir.Node]:
    """Rows of a quantized matrix. Codes [V, n_blocks, bytes] are seen as [V, n_blocks·bytes]."""
    blocks = kept.blocks
    n_rows, n_blocks, n_bytes = blocks.codes.shape
    shape = add_initializer(
        graph, "embed_tokens_rows", np.array([n_rows, n_blocks * n_bytes], np.int64)
    )
    flat = ir.node("Reshape", [kept.codes, shape], name="/model/embed_tokens/Reshape")
    flat.outputs[0].name = "/model/embed_tokens/Reshape/output_0"
    flat.outputs[0].dtype = ir.DataType.UINT8
    flat.outputs[0].shape = ir.Shape((n_rows, n_blocks * n_bytes))
    inputs: list[ir.Value | None] = [flat.outputs[0], node.inputs[1], kept.scales]
    inputs += [kept.zeros] if kept.zeros is not None else []
    gather = ir.node(
        "GatherBlockQuantized",
        inputs,
        {"bits": blocks.bits, "block_size": blocks.block, "gather_axis": 0, "quantize_axis": 1},
        domain=_DOMAIN,
        name="/model/embed_tokens/GatherBlockQuantized",
    )
    if n_blocks * blocks.block == blocks.n_columns:
        return [flat, gather]
    gather.outputs[0].name = "/model/embed_tokens/GatherBlockQuantized/output_0"
    bounds = [
        add_initializer(graph, f"embed_tokens_{name}", np.array([value], np.int64))
        for name, value in (("start", 0), ("end", blocks.n_columns), ("axis", -1))
    ]
    cut = ir.node("Slice", [gather.outputs[0], *bounds], name="/model/embed_tokens/Slice")
    return [flat, gather, cut]


# ---- leftovers -----------------------------------------------------------------------------------


def _drop_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads any more (the float matrices)."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name in [n for n, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def _count(counts: dict[str, int], scheme: OnnxScheme, n_weights: int) -> None:
    kind = f"int{scheme.bits}_b{scheme.block}{'' if scheme.symmetric else '_asym'}"
    counts[kind] = counts.get(kind, 0) + n_weights
