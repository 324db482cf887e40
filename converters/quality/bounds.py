"""Read and apply `bounds.toml`: the maximum divergence of each recipe from its source."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.device_profiles.toml_parser import TOMLDecodeError, decode_toml
from boardfit.edge.errors import InputError, IntegrityError


@dataclass(frozen=True)
class Bound:
    """`kld_mean`: the most mean divergence in nats per token on the named text. `published`: what
    others measured for the recipe on a large model, None when unknown.
    """

    kld_mean: float
    published: float | None = None


def parse_bounds(text: str) -> dict[str, Bound]:
    """Bounds by recipe id. Raises InputError that names the recipe and key."""
    try:
        data = decode_toml(text)
    except TOMLDecodeError as error:
        raise InputError(f"bounds.toml: {error}") from None
    found = {}
    for recipe, values in data.items():
        unknown = set(values) - {"kld_mean", "published"}
        if unknown or not all(isinstance(v, float) and v > 0 for v in values.values()):
            raise InputError(f"bounds.toml: {recipe}: expected kld_mean and published, as numbers")
        found[recipe] = Bound(**values)
    return found


@functools.cache
def _all_bounds() -> Mapping[str, Bound]:
    return parse_bounds((Path(__file__).parent / "bounds.toml").read_text(encoding="utf-8"))


def find_bound(recipe_id: str) -> Bound | None:
    """The bound of a recipe, None for one that has none."""
    return _all_bounds().get(recipe_id)


def check_bounds(card: Mapping[str, Any], recipe_id: str, *, accept: bool = False) -> None:
    """Raise IntegrityError with the figures when an artifact is further from its source than its
    recipe allows, unless the user accepted it. A card without figures passes.
    """
    if card.get("within_bounds") is not False or accept:
        return
    text = card["texts"][0]
    raise IntegrityError(
        f"{recipe_id} is too far from its source: mean divergence {text['kld_mean']:.3g} nats per "
        f"token on {text['name']}, at most {card['kld_mean_bound']:g} is expected; the same top "
        f"token at {text['top1_agree']:.1%}, perplexity {text['ppl']:.4g} against the source's "
        f"{text['ppl_reference']:.4g}",
        next_step="check the source, choose a recipe with more bits (--recipe), or take it as it "
        "is with --accept-quality",
    )
