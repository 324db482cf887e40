"""Choose the format for `auto`: the fastest to answer on this board at similar quality.

An answer of `N_ANSWER` tokens to a prompt of the plan's length is timed with each format's plan.
Formats whose recipe was measured to diverge from the source more than `MOST_DIVERGENCE` times what
GGUF's Q4_0 does, on the same model and text, are not considered; nor is a gain below `MARGIN`, for
which a GGUF is kept: it maps its weights, and everything reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from boardfit.converters.formats.table import GGUF
from boardfit.converters.plan.converted import format_of_engine
from boardfit.device_profiles.toml_parser import TOMLDecodeError, decode_toml
from boardfit.edge.errors import InputError
from boardfit.edge.types import Plan
from boardfit.edge.units import format_seconds

N_ANSWER = 64
MOST_DIVERGENCE = 1.5
MARGIN = 1.15
# Formats as close as this answer at the same time: of them, the one that diverges least is taken.
_CLOSE = 1.05
_YARDSTICK = "q4_0"


@dataclass(frozen=True)
class Measured:
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


@dataclass(frozen=True)
class Choice:
    """The plan taken, and why, in plain words."""

    plan: Plan
    reasons: tuple[str, ...]


@functools.cache
def measured_rows() -> tuple[Measured, ...]:
    """All rows. Raises InputError for a file that is not what it should be."""
    text = (Path(__file__).parent / "measured.toml").read_text(encoding="utf-8")
    try:
        return tuple(Measured(**row) for row in decode_toml(text).get("rows", ()))
    except (TOMLDecodeError, TypeError) as error:
        raise InputError(f"measured.toml: {error}") from None


def divergence_ratio(recipe: str, rows: tuple[Measured, ...] | None = None) -> float | None:
    """How many times Q4_0's divergence a recipe has: the worst over the models on which both were
    measured; None where that is none.
    """
    rows = measured_rows() if rows is None else rows
    found = {row.model: row.kld_mean for row in rows if row.recipe == recipe}
    yard = {row.model: row.kld_mean for row in rows if row.recipe == _YARDSTICK}
    ratios = [found[model] / yard[model] for model in found if yard.get(model)]
    return max(ratios, default=None)


def answer_seconds(plan: Plan, n_prompt: int) -> float | None:
    """Prefill of the prompt and decode of an answer; None where the plan knows no speed."""
    if not plan.prefill_tps or not plan.decode_tps:
        return None
    return n_prompt / plan.prefill_tps + N_ANSWER / plan.decode_tps


def choose_format(plans: Mapping[str, Plan], n_prompt: int, refused: Mapping[str, str]) -> Choice:
    """One of `plans` (by format; GGUF is among them). `refused` are the formats that cannot be
    made for the board, and why.
    """
    base = plans[GGUF]
    reasons = [f"{name} is out: {why}" for name, why in refused.items()]
    base_s = answer_seconds(base, n_prompt)
    question = f"a prompt of {n_prompt} tokens answered with {N_ANSWER}"
    if base_s is None:
        return Choice(base, (*reasons, "gguf: no speed is known for this board to compare by"))
    best, best_s = base, base_s
    candidates: dict[str, tuple[float, float]] = {}
    for name, plan in plans.items():
        seconds, ratio = answer_seconds(plan, n_prompt), divergence_ratio(plan.recipe)
        if name == GGUF or seconds is None:
            continue
        if ratio is None or ratio > MOST_DIVERGENCE:
            quality_text = "was not measured" if ratio is None else f"is {ratio:.1f} times Q4_0's"
            reasons.append(f"{name} is out: the divergence of {plan.recipe} {quality_text}")
        else:
            candidates[name] = (seconds, ratio)
    if candidates:
        soonest = min(seconds for seconds, _ in candidates.values())
        close = {n: r for n, (s, r) in candidates.items() if s <= soonest * _CLOSE}
        found = min(close, key=lambda n: close[n])
        if candidates[found][0] < base_s:
            best, best_s = plans[found], candidates[found][0]
    name = format_of_engine(best.engine).id
    if best is base or base_s / best_s < MARGIN:
        others = min(
            (s for n, p in plans.items() if n != GGUF and (s := answer_seconds(p, n_prompt))),
            default=None,
        )
        against = f", the next format in {format_seconds(others)}" if others else ""
        return Choice(base, (*reasons, f"gguf: {question} in {format_seconds(base_s)}{against}"))
    ratio = divergence_ratio(best.recipe)
    reasons.append(
        f"{name}: {question} in {format_seconds(best_s)} instead of {format_seconds(base_s)} with "
        f"gguf; divergence {ratio:.2f} times Q4_0's where both were measured"
    )
    return Choice(best, tuple(reasons))
