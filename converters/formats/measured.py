"""Read what recipes were measured at: `measured.toml`, as `scripts/measure_formats` wrote it."""

import functools
from dataclasses import dataclass

from boardfit.device_profiles.toml_parser import load_toml

_YARDSTICK = "q4_0"


@dataclass(frozen=True)
class MeasuredRecipe:
    """One row of `measured.toml`: a recipe on one model. `n_bytes` is the artifact's, divergence in
    nats per token on the named text; prefill is of 128 tokens, decode from an empty context.
    """

    model: str
    format: str
    recipe: str
    n_bytes: int
    kld_mean: float
    kld_mean_stderr: float
    top1_agree: float
    prefill_tps: float
    decode_tps: float
    machine: str


@functools.cache
def measured_rows() -> tuple[MeasuredRecipe, ...]:
    """All rows."""
    rows = load_toml("boardfit.converters.formats", "measured.toml").get("rows", ())
    return tuple(MeasuredRecipe(**row) for row in rows)


def divergence_ratio(recipe: str, rows: tuple[MeasuredRecipe, ...] | None = None) -> float | None:
    """How many times Q4_0's divergence a recipe has: the worst over the models on which both were
    measured; None where that is none.
    """
    rows = measured_rows() if rows is None else rows
    found = {row.model: row.kld_mean for row in rows if row.recipe == recipe}
    yard = {row.model: row.kld_mean for row in rows if row.recipe == _YARDSTICK}
    ratios = [found[model] / yard[model] for model in found if yard.get(model)]
    return max(ratios, default=None)
