"""Table cells of speeds: the speed per user, with the bound of each figure."""

from __future__ import annotations

from boardfit.converters.plan.options import PlanOptions
from boardfit.converters.plan.planner import Candidate
from boardfit.edge.units import format_seconds


def bound_text(bound: float) -> str:
    """`±35%`, or `×/÷2.5` where the truth may be further off than half or double."""
    return f"±{bound:.0%}" if bound < 1 else f"×/÷{1 + bound:.1f}"


def speed_cells(chosen: Candidate, options: PlanOptions) -> str:
    """Decode in tokens/s and time to the first token, each with its bound; dashes where unknown."""
    rate = chosen.user_tps(options.n_users)
    ttft = chosen.ttft_s(options.n_prompt, options.n_users)
    decode, first = "–", "–"
    if rate is not None:
        figure = f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"
        decode = f"{figure} {bound_text(chosen.speed.decode_bound)}"
    if ttft is not None:
        first = f"{format_seconds(ttft)} {bound_text(chosen.speed.prefill_bound)}"
    return f"{decode:>11}  {first:>16}"
