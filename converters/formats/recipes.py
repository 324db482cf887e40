"""Recipes of a format as named data: the files `recipes/*.toml` in its folder, one per id. Standard
library only; workers read them in their own environments.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from boardfit.device_profiles.toml_parser import TOMLDecodeError, decode_toml
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.units import did_you_mean

R = TypeVar("R")


@dataclass(frozen=True)
class RecipeFolder(Generic[R]):
    """The recipes beside `module`. `what` is what messages call one, `parse` makes one of a file's
    content and its id, `order` sorts them. `prefix` may be left out of an id; `besides` names what
    else may stand for a recipe.
    """

    module: str
    what: str
    parse: Callable[[dict[str, Any], str], R]
    order: Callable[[R], Any]
    prefix: str = ""
    besides: str = ""

    @functools.cached_property
    def recipes(self) -> dict[str, R]:
        paths = Path(self.module).with_name("recipes").glob("*.toml")
        found = [(p.stem, self.read(p.read_text(encoding="utf-8"), p.stem)) for p in paths]
        return dict(sorted(found, key=lambda pair: (self.order(pair[1]), pair[0])))

    def list(self) -> tuple[R, ...]:
        return tuple(self.recipes.values())

    def load(self, recipe_id: str) -> R:
        """The recipe of that id; `-` and `_`, upper and lower case mean the same.

        Raises UsageError, with the nearest known id, when there is none.
        """
        wanted = recipe_id.strip().lower().replace("-", "_")
        for name in (wanted, self.prefix + wanted):
            if name in self.recipes:
                return self.recipes[name]
        raise UsageError(
            f"unknown {self.what} {recipe_id!r}; known: {', '.join(self.recipes)}{self.besides}."
            f"{did_you_mean(wanted, self.recipes)}"
        )

    def read(self, text: str, recipe_id: str) -> R:
        """A recipe from the text of its file. Raises InputError naming the file and the key."""
        try:
            return self.parse(decode_toml(text), recipe_id)
        except (InputError, TOMLDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{self.what} {recipe_id}.toml: {error}") from None


def take_id(data: dict[str, Any], recipe_id: str) -> None:
    """Take `id` out of a file's content. Raises InputError when it is not the file's name."""
    if data.pop("id", None) != recipe_id:
        raise InputError(f"id must be {recipe_id!r}, the file's name")


def check_keys(values: Mapping[str, Any], known: Collection[str]) -> None:
    for key in values:
        if key not in known:
            raise InputError(f"unknown key {key!r}.{did_you_mean(key, known)}")


def check_value(key: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise InputError(
            f"{key}: unknown value {value!r}; known: {', '.join(known)}."
            f"{did_you_mean(value, known)}"
        )
