"""Refuse a plan that fits a board but not its time limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boardfit.converters.plan.reach import refuse_needs
from boardfit.edge.errors import DeadlineError
from boardfit.edge.units import format_seconds

if TYPE_CHECKING:
    from boardfit.converters.plan.planner import Planner


def refuse_deadline(planner: Planner, n_ctx: int) -> None:
    """Raise DeadlineError when a recipe fits with a context of `n_ctx`, and only time is short."""
    if not planner.options.has_deadline:
        return
    if planner.options.needs:
        refuse_needs(planner)
        return
    found = [c for w in planner.weights if planner.fits(c := planner.best(w, n_ctx))]
    if not found:
        return
    options = planner.options
    asked = []
    if options.min_tps is not None:
        asked.append(f"{options.min_tps:g} tokens/s")
    if options.max_ttft_s is not None:
        limit = format_seconds(options.max_ttft_s)
        asked.append(f"a first token {limit} after {options.n_prompt} tokens")
    users = f" for {options.n_users} users" if options.n_users > 1 else ""
    known = [c for c in found if c.ttft_s(1, 1) is not None]
    wanted = f"{' and '.join(asked)}{users} cannot be promised on {planner.profile.name}"
    if not known:
        raise DeadlineError(
            f"{wanted}: no speed is known for this board",
            next_step="run `edge probe` on the board, then plan for the profile it writes",
        )
    n_prompt, n_users = options.n_prompt, options.n_users
    rate = max(c.user_tps(n_users) or 0.0 for c in known)
    soonest = min(c.ttft_s(n_prompt, n_users) or float("inf") for c in known)
    raise DeadlineError(
        f"{wanted}: at best {rate:.1f} tokens/s, and a first token after {format_seconds(soonest)}",
        next_step="a smaller model, a shorter question (--prompt), fewer users, or a faster"
        " board (--any-device lists them)",
    )
