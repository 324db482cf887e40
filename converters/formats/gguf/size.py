"""Exact size of an artifact before it exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boardfit.converters.formats.gguf.assign import assign_types
from boardfit.converters.formats.gguf.recipe import GgufRecipe
from boardfit.converters.spec import ModelSpec

if TYPE_CHECKING:
    from boardfit.converters.formats.gguf.imatrix import Imatrix


def artifact_bytes(spec: ModelSpec, recipe: GgufRecipe, *, imatrix: Imatrix | None = None) -> int:
    """Bytes of the GGUF file that `write_gguf` makes, header and padding included. Exact."""
    from boardfit.converters.formats.gguf.header import (
        file_layout,  # brings the writer's and the imatrix's modules
    )

    typed = assign_types(spec, recipe, has_imatrix=imatrix is not None)
    return file_layout(spec, recipe, typed, imatrix).nbytes
