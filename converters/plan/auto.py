"""Choose the format for `auto`: the fastest to answer on this board at similar quality.

An answer of `N_ANSWER` tokens to a prompt of the plan's length is timed with each format's plan.
Formats whose recipe was measured to diverge from the source more than `MOST_DIVERGENCE` times what
GGUF's Q4_0 does, on the same model and text, are not considered; nor is a gain below `MARGIN`, for
which a GGUF is kept: it maps its weights, and everything reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from boardfit.converters.formats.base import GGUF, format_of_engine
from boardfit.converters.formats.measured import divergence_ratio
from boardfit.edge.types import Plan
from boardfit.edge.units import format_seconds

N_ANSWER = 64
MOST_DIVERGENCE = 1.5
MARGIN = 1.15
# Formats as close as this answer at the same time: of them, the one that diverges least is taken.
_CLOSE = 1.05


@dataclass(frozen=True)
class Choice:
    """The plan taken, and why, in plain words."""

    plan: Plan
    reasons: tuple[str, ...]


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
    others = {name: plan for name, plan in plans.items() if plan is not base}
    reasons = [f"{name} is out: {why}" for name, why in refused.items()]
    base_s = answer_seconds(base, n_prompt)
    question = f"a prompt of {n_prompt} tokens answered with {N_ANSWER}"
    if base_s is None:
        return Choice(base, (*reasons, "gguf: no speed is known for this board to compare by"))
    best, best_s = base, base_s
    candidates: dict[str, tuple[float, float]] = {}
    for name, plan in others.items():
        seconds, ratio = answer_seconds(plan, n_prompt), divergence_ratio(plan.recipe)
        if seconds is None:
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
        times = [s for plan in others.values() if (s := answer_seconds(plan, n_prompt))]
        against = f", the next format in {format_seconds(min(times))}" if times else ""
        return Choice(base, (*reasons, f"gguf: {question} in {format_seconds(base_s)}{against}"))
    ratio = divergence_ratio(best.recipe)
    reasons.append(
        f"{name}: {question} in {format_seconds(best_s)} instead of {format_seconds(base_s)} with "
        f"gguf; divergence {ratio:.2f} times Q4_0's where both were measured"
    )
    return Choice(best, tuple(reasons))
