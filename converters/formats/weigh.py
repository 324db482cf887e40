"""Estimate the size of a model in a recipe of LiteRT or ONNX, before any conversion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from boardfit.converters.formats.litert import recipe as litert_recipe
from boardfit.converters.formats.litert.types import WEIGHT_TYPES
from boardfit.converters.formats.onnx import recipe as onnx_recipe
from boardfit.converters.formats.table import Format
from boardfit.converters.spec import ModelSpec, TargetTensor
from boardfit.device_profiles.cost.memory import StoredTensor
from boardfit.edge.units import MIB

# The graph itself, per layer and signature, and tokenizer entries: measured on small models.
_GRAPH_BYTES_PER_LAYER, _BYTES_PER_TOKEN = 24 * 1024, 24
# What the speed model knows of a weight is its kind: bits, not the layout.
_STANDS_FOR = {4: "Q4_0", 8: "Q8_0", 32: "F32"}


@dataclass(frozen=True)
class FormatWeights:
    """Predicted file size, and the tensors as the cost model takes them."""

    artifact_bytes: int
    tensors: tuple[StoredTensor, ...]


def weigh(spec: ModelSpec, target: Format, recipe_id: str) -> FormatWeights:
    """Sizes within a per cent or two: graph and tokenizer are estimated, weights are exact.

    Raises UsageError for an unknown recipe.
    """
    stored = tuple(_onnx(spec, recipe_id) if target.id == "onnx" else _litert(spec, recipe_id))
    extra = _GRAPH_BYTES_PER_LAYER * spec.shape.n_layer + _BYTES_PER_TOKEN * spec.shape.n_vocab
    return FormatWeights(sum(t.n_bytes for t in stored) + extra, stored)


def _litert(spec: ModelSpec, recipe_id: str) -> Iterator[StoredTensor]:
    recipe = litert_recipe.load_recipe(recipe_id)
    tied, n_layers = is_tied(spec), spec.shape.n_layer
    for tensor in spec.tensors:
        if tensor.n_rows == 1:
            yield _stored(tensor, 32, 4 * tensor.n_elements)
            continue
        roles = ["embedding"] if tensor.name == "token_embd.weight" else ["linear"]
        if roles == ["embedding"] and tied:
            roles.append("linear")
        kinds = {
            recipe.choose_type(
                tensor.origin,
                role,
                tied=tied and tensor.name == "token_embd.weight",
                n_layers=n_layers,
                n_per_row=tensor.n_per_row,
            )
            for role in roles
        }
        for kind in kinds:  # one copy serves embedding and head where both are stored alike
            found = WEIGHT_TYPES[kind]
            n_bytes = found.total_bytes(tensor.n_rows, tensor.n_per_row)
            yield _stored(tensor, found.bits, n_bytes)


def _onnx(spec: ModelSpec, recipe_id: str) -> Iterator[StoredTensor]:
    recipe = onnx_recipe.load_onnx_recipe(recipe_id)
    tied = is_tied(spec)
    for tensor in spec.tensors:
        if tensor.n_rows == 1:
            yield _stored(tensor, 32, 4 * tensor.n_elements)
            continue
        if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight"):
            scheme = recipe.head
        elif tensor.name == "token_embd.weight":
            scheme = recipe.embedding
        else:
            scheme = recipe.find_scheme(tensor.origin)
        scheme = scheme.fitting(tensor.n_per_row)
        yield _stored(tensor, scheme.bits, int(tensor.n_elements * scheme.bpw / 8))


def is_tied(spec: ModelSpec) -> bool:
    """Whether the embedding is the output matrix too."""
    return all(tensor.name != "output.weight" for tensor in spec.tensors)


def _stored(tensor: TargetTensor, bits: int, n_bytes: int) -> StoredTensor:
    rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    return StoredTensor(
        name=tensor.name,
        ggml_type=_STANDS_FOR[bits],
        n_per_row=tensor.n_per_row,
        n_rows=rows,
        n_matrices=tensor.n_rows // max(rows, 1),
        n_bytes=n_bytes,
    )


#: Interpreter, library and its arena with nothing loaded, as the engines measure it.
ENGINE_BYTES = {"litert": 60 * MIB, "tflite": 60 * MIB, "onnx": 100 * MIB}
