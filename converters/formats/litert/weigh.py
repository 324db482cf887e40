"""Weigh a model in a LiteRT recipe, before any conversion."""

from __future__ import annotations

from collections.abc import Iterator

from boardfit.converters.formats.base import is_tied
from boardfit.converters.formats.converted import stored_bits
from boardfit.converters.formats.litert.recipe import LitertRecipe
from boardfit.converters.formats.litert.types import WEIGHT_TYPES
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.cost.memory import StoredTensor


def stored_tensors(spec: ModelSpec, recipe: LitertRecipe) -> Iterator[StoredTensor]:
    """The tensors as the recipe stores them; a tied embedding comes twice if it is stored twice."""
    tied, n_layers = is_tied(spec), spec.shape.n_layer
    for tensor in spec.tensors:
        if tensor.n_rows == 1:
            yield stored_bits(tensor, 32, 4 * tensor.n_elements)
            continue
        roles = ["embedding"] if tensor.name == "token_embd.weight" else ["linear"]
        if roles == ["embedding"] and tied:
            roles.append("linear")
        kinds = {
            recipe.type_of(
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
            yield stored_bits(tensor, found.bits, n_bytes)
