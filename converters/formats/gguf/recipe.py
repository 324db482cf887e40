"""One recipe read from its TOML file: every key known, every value checked."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.device_profiles.toml_parser import TOMLDecodeError, decode_toml
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.files.ggml_types import GGML_TYPES
from boardfit.edge.units import did_you_mean

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
    """Tensors of one group get `type` instead of the recipe's, where every condition holds.

    The first rule of a recipe that holds for a tensor decides. `min_gqa` compares query heads per
    KV head of the first layer, `experts` the number of experts, `imatrix` whether there is one,
    `arch` the architecture (`not falcon` negates).
    """

    tensors: str
    type: str
    layers: str = "all"
    min_gqa: int = 0
    experts: int | None = None
    imatrix: bool | None = None
    arch: str | None = None

    def __post_init__(self) -> None:
        _one_of("tensors", self.tensors, RULE_TENSORS)
        _one_of("type", self.type, GGML_TYPES)
        _one_of("layers", self.layers, RULE_LAYERS)


@dataclass(frozen=True)
class GgufRecipe:
    """One named way to store a model.

    `type` is what most matrices get, `output` what the output matrix (or the token embedding, when
    the two are tied) gets; `rules` name the exceptions. `file_type` is upstream's `llama_ftype`.
    """

    id: str
    name: str
    file_type: int
    type: str
    about: str
    output: str | None = None
    rules: tuple[GgufRule, ...] = ()

    def __post_init__(self) -> None:
        _one_of("type", self.type, GGML_TYPES)
        if self.output is not None:
            _one_of("output", self.output, GGML_TYPES)
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


@functools.cache
def load_recipe(recipe_id: str) -> GgufRecipe:
    """The recipe of that id; `-` and `_`, upper and lower case mean the same.

    Raises UsageError, with the nearest known id, when there is none.
    """
    files = _files()
    wanted = recipe_id.strip().lower().replace("-", "_")
    if wanted not in files:
        raise UsageError(
            f"unknown recipe {recipe_id!r}; known: {', '.join(files)}, and for a .gguf file "
            f"{AS_IS}.{did_you_mean(wanted, files)}"
        )
    return parse_recipe(files[wanted].read_text(encoding="utf-8"), wanted)


def list_recipes() -> tuple[GgufRecipe, ...]:
    """All recipes, most bits first."""
    return tuple(load_recipe(name) for name in _files())


@functools.cache
def _files() -> Mapping[str, Path]:
    found = {path.stem: path for path in Path(__file__).with_name("recipes").glob("*.toml")}
    return {name: found[name] for name in sorted(found, key=lambda n: (-_bits(found[n]), n))}


def _bits(path: Path) -> float:
    """Bits per weight of the recipe's main type, exceptions not counted: enough to sort by."""
    data = decode_toml(path.read_text(encoding="utf-8"))
    entry = GGML_TYPES.get(str(data.get("type")))
    return entry.bits_per_weight if entry else 0.0


def parse_recipe(text: str, recipe_id: str) -> GgufRecipe:
    """A recipe from the text of its file. Raises InputError naming the file and the key."""
    try:
        data = decode_toml(text)
        rules = data.pop("rules", [])
        if data.pop("id", None) != recipe_id:
            raise InputError(f"id must be {recipe_id!r}, the file's name")
        return GgufRecipe(
            id=recipe_id,
            rules=tuple(_build(GgufRule, rule) for rule in rules),
            **_known(GgufRecipe, data),
        )
    except (InputError, TOMLDecodeError, TypeError) as error:
        raise InputError(f"recipe {recipe_id}.toml: {error}") from None


def _build(kind: type[GgufRule], values: Mapping[str, Any]) -> GgufRule:
    return kind(**_known(kind, values))


def _known(kind: type[GgufRule] | type[GgufRecipe], values: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = kind.__dataclass_fields__
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"unknown key {key!r}.{did_you_mean(key, fields)}")
        expected = (str,) if "str" in str(fields[key].type) else (int, bool)
        if not isinstance(value, expected):
            raise InputError(f"{key}: expected {fields[key].type}, got {value!r}")
    return values


def _one_of(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise InputError(
            f"{key}: unknown value {value!r}; known: {', '.join(known)}."
            f"{did_you_mean(value, known)}"
        )
