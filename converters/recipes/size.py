"""Exact size of an artifact before it exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boardfit.converters.recipes.assign import assign_types
from boardfit.converters.recipes.recipe import Recipe
from boardfit.converters.source.spec import ModelSpec

if TYPE_CHECKING:
    from boardfit.converters.imatrix.matrix import Imatrix


def artifact_bytes(spec: ModelSpec, recipe: Recipe, *, imatrix: Imatrix | None = None) -> int:
    """Bytes of the GGUF file that `write_gguf` makes, header and padding included. Exact."""
    from boardfit.converters.target.gguf import (
        file_layout,  # brings the writer's and the imatrix's modules
    )

    typed = assign_types(spec, recipe, has_imatrix=imatrix is not None)
    return file_layout(spec, recipe, typed, imatrix).nbytes
