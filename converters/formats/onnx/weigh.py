"""Weigh a model in an ONNX recipe, before any conversion."""

from __future__ import annotations

from collections.abc import Iterator

from boardfit.converters.formats.base import is_tied
from boardfit.converters.formats.converted import stored_bits
from boardfit.converters.formats.onnx.recipe import OnnxRecipe
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.memory import StoredTensor


def stored_tensors(spec: ModelSpec, recipe: OnnxRecipe) -> Iterator[StoredTensor]:
    """The tensors as the recipe stores them."""
    tied = is_tied(spec)
    for tensor in spec.tensors:
        if tensor.n_rows == 1:
            yield stored_bits(tensor, 32, 4 * tensor.n_elements)
            continue
        if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight"):
            scheme = recipe.head
        elif tensor.name == "token_embd.weight":
            scheme = recipe.embedding
        else:
            scheme = recipe.scheme_of(tensor.origin)
        scheme = scheme.fitting(tensor.n_per_row)
        yield stored_bits(tensor, scheme.bits, int(tensor.n_elements * scheme.bpw / 8))
