"""GGUF recipes: named data in `recipes/*.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from boardfit.converters.formats.base import Format
from boardfit.converters.formats.recipes import RecipeFolder
from boardfit.edge.files.ggml_types import GGML_TYPES

FLOAT_TYPES = ("F32", "F16", "BF16")
#: Stands for a recipe where a GGUF file is run as it stands.
AS_IS = "as-is"
_GUESSED_FILE_TYPE = 1024  # LLAMA_FTYPE_GUESSED: the tensors decide


@dataclass(frozen=True)
class GgufRule:
    """Tensors of one group get `type` instead of the recipe's, where every condition holds; the
    first rule that holds decides. `tensors` is a group (upstream's `tensor_category` in
    src/llama-quant.cpp), `layers` what `assign.layers_hold` knows. `min_gqa` compares query heads
    per KV head of the first layer, `experts` their number, `imatrix` whether there is one, `arch`
    the architecture (`not falcon` negates).
    """

    tensors: str
    type: str
    layers: str = "all"
    min_gqa: int = 0
    experts: int | None = None
    imatrix: bool | None = None
    arch: str | None = None


@dataclass(frozen=True)
class GgufRecipe:
    """One named way to store a model. `type` is what most matrices get, `output` what the output
    matrix (or the token embedding, when the two are tied) gets; `rules` name the exceptions.
    `file_type` is upstream's `llama_ftype`.
    """

    id: str
    name: str
    file_type: int
    type: str
    about: str
    output: str | None = None
    rules: tuple[GgufRule, ...] = ()

    @property
    def is_quantized(self) -> bool:
        return self.type not in FLOAT_TYPES


def is_as_is(recipe_id: str | None) -> bool:
    """Whether a user's word for a recipe means the file as it stands."""
    return recipe_id is not None and recipe_id.strip().lower().replace("_", "-") == AS_IS


def make_as_is(main: str) -> GgufRecipe:
    """Make what stands for a recipe where nothing is converted; `main` is most bytes' type."""
    return GgufRecipe(
        AS_IS, f"as it is, mostly {main}", _GUESSED_FILE_TYPE, main, "the file as it stands",
        output=main,
    )  # fmt: skip


def _parse(data: dict[str, Any], recipe_id: str) -> GgufRecipe:
    rules = tuple(GgufRule(**rule) for rule in data.pop("rules", ()))
    return GgufRecipe(**data, rules=rules)


def _most_bits_first(recipe: GgufRecipe) -> float:
    """By the main type, exceptions not counted."""
    return -GGML_TYPES[recipe.type].bits_per_weight


RECIPES = RecipeFolder(
    __file__, "recipe", _parse, _most_bits_first, besides=f", and for a .gguf file {AS_IS}"
)
load_recipe, list_recipes = RECIPES.load, RECIPES.list


class GgufFormat(Format):
    """See `Format`."""

    def list_recipes(self) -> tuple[str, ...]:
        return tuple(recipe.id for recipe in list_recipes())

    def describe_recipe(self, recipe_id: str) -> str:
        return load_recipe(recipe_id).about
