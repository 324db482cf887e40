"""Command-line options that make a `Budget`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from boardfit.edge.terminal.options import pass_value

if TYPE_CHECKING:
    from boardfit.edge.deadline.budget import Budget


def _make_budget(within: str | None, first_within: str | None, **choices: Any) -> Budget | None:
    """Return the budget that the options name; None without a time. Raises UsageError."""
    if within is None and first_within is None:
        return None
    from boardfit.edge.deadline.budget import Budget  # a chat without a time never imports it

    return Budget.parse(within, first_within, **choices)


#: Adds --within, --first-within, --on-miss and --tell to a command, which gets one `budget`.
budget_options = pass_value(
    "budget",
    _make_budget,
    click.option("--within", help="Time limit for the whole answer, for example 2s or 500ms."),
    click.option("--first-within", help="Time limit for the first word of the answer."),
    click.option(
        "--on-miss",
        type=click.Choice(["refuse", "best"]),
        default="refuse",
        show_default=True,
        help="If no version of a question fits the time: refuse at once, or answer as far as "
        "possible.",
    ),
    click.option(
        "--tell/--no-tell",
        default=True,
        show_default=True,
        help="When time is short, ask the model for a short answer.",
    ),
)
