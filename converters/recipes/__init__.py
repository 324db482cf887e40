"""Recipes: which ggml type each tensor gets, as named data (`converters/recipes/*.toml`).

A recipe mirrors one of upstream's file types (`llama_ftype`) with its per-tensor rules, so that the
same recipe gives the same bytes as `llama-quantize`.

    from boardfit.converters.recipes import artifact_bytes, assign_types, load_recipe

    recipe = load_recipe("q4_k_m")
    artifact_bytes(spec, recipe)      # exact size of the file to be, no tensor data touched
"""

from boardfit.converters.recipes.assign import TypedTensor, assign_types
from boardfit.converters.recipes.recipe import Recipe, Rule, list_recipes, load_recipe, parse_recipe
from boardfit.converters.recipes.size import artifact_bytes

__all__ = [
    "Recipe",
    "Rule",
    "TypedTensor",
    "artifact_bytes",
    "assign_types",
    "list_recipes",
    "load_recipe",
    "parse_recipe",
]
