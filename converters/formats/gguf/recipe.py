"""One recipe read from its TOML file: every key known, every value checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boardfit.converters.formats.base import Format
from boardfit.converters.formats.recipes import RecipeFolder, check_keys, check_value, take_id
from boardfit.edge.errors import InputError
from boardfit.edge.files.ggml_types import GGML_TYPES

# Groups of tensors that rules speak of; upstream's `tensor_category` in src/llama-quant.cpp.
RULE_TENSORS = ("attn_v", "attn_output", "ffn_down")
# Which layers a rule holds for, of n: see `boardfit.converters.formats.gguf.assign.layers_hold`.
RULE_LAYERS = ("all", "more-bits", "first-eighth", "first-sixteenth", "first-2", "first-4")
FLOAT_TYPES = ("F32", "F16", "BF16")
#: Stands for a recipe where a GGUF file is run as it stands.
AS_IS = "as-is"
_GUESSED_FILE_TYPE = 1024  # LLAMA_FTYPE_GUESSED: the tensors decide


@dataclass(frozen=True)
class GgufRule:
    """Tensors of one group get `type` instead of the recipe's, where every condition holds; the
    first rule that holds decides. `min_gqa` compares query heads per KV head of the first layer,
    `experts` their number, `imatrix` whether there is one, `arch` the architecture (`not falcon`
    negates).
    """

    tensors: str
    type: str
    layers: str = "all"
    min_gqa: int = 0
    experts: int | None = None
    imatrix: bool | None = None
    arch: str | None = None

    def __post_init__(self) -> None:
        check_value("tensors", self.tensors, RULE_TENSORS)
        check_value("type", self.type, GGML_TYPES)
        check_value("layers", self.layers, RULE_LAYERS)


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

    def __post_init__(self) -> None:
        check_value("type", self.type, GGML_TYPES)
        if self.output is not None:
            check_value("output", self.output, GGML_TYPES)
        if self.is_quantized and self.output is None:
            raise InputError(f"recipe {self.id}: a quantized recipe must name its output type")

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
    take_id(data, recipe_id)
    rules = tuple(GgufRule(**_checked(GgufRule, rule)) for rule in data.pop("rules", []))
    return GgufRecipe(id=recipe_id, rules=rules, **_checked(GgufRecipe, data))


def _checked(
    kind: type[GgufRule] | type[GgufRecipe], values: Mapping[str, Any]
) -> Mapping[str, Any]:
    fields = kind.__dataclass_fields__
    check_keys(values, fields)
    for key, value in values.items():
        expected = (str,) if "str" in str(fields[key].type) else (int, bool)
        if not isinstance(value, expected):
            raise InputError(f"{key}: expected {fields[key].type}, got {value!r}")
    return values


def _most_bits_first(recipe: GgufRecipe) -> float:
    """By the main type, exceptions not counted."""
    return -GGML_TYPES[recipe.type].bits_per_weight


RECIPES = RecipeFolder(
    __file__, "recipe", _parse, _most_bits_first, besides=f", and for a .gguf file {AS_IS}"
)
load_recipe, list_recipes, parse_recipe = RECIPES.load, RECIPES.list, RECIPES.read


class GgufFormat(Format):
    """See `Format`."""

    def list_recipes(self) -> tuple[str, ...]:
        return tuple(recipe.id for recipe in list_recipes())

    def describe_recipe(self, recipe_id: str) -> str:
        return load_recipe(recipe_id).about
