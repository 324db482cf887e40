"""Recipes of a format as named data: the files `recipes/*.toml` in its folder, one per id. Standard
library only; workers read them in their own environments. Tests hold every value against those
that the format knows.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from boardfit.device_profiles.toml_parser import decode_toml
from boardfit.edge.errors import UsageError
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
        texts = ((path.stem, path.read_text(encoding="utf-8")) for path in paths)
        found = [(name, self.parse(decode_toml(text), name)) for name, text in texts]
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
