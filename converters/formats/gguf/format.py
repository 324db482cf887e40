"""GGUF as a format: every model, every board. `edge build` writes its recipes together
(`write_many`), and the planner weighs them.
"""

from __future__ import annotations

from boardfit.converters.formats.base import Format
from boardfit.converters.formats.gguf.recipe import list_recipes, load_recipe


class GgufFormat(Format):
    """See `Format`."""

    def list_recipes(self) -> tuple[str, ...]:
        return tuple(recipe.id for recipe in list_recipes())

    def describe_recipe(self, recipe_id: str) -> str:
        return load_recipe(recipe_id).about
