"""Options of `edge bench` for a workload and its time limits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from boardfit.edge.bench.deadline_run import Workload
from boardfit.edge.deadline.budget import Budget, OnMiss
from boardfit.edge.errors import UsageError
from boardfit.edge.tasks.requests import MIX, find_workload
from boardfit.edge.terminal.options import add_options

N_REQUESTS, N_COLD = 50, 5

_add_options = add_options(
    click.option(
        "--workload", metavar="TASK",
        help="Measure with the requests of a task (see `edge tasks`), or mix for all tasks.",
    ),
    click.option(
        "--within", help="Time limit for each whole answer: 2s, 500ms. [default: the task's]"
    ),
    click.option("--first-within", help="Time limit for the first token."),
    click.option(
        "--on-miss", type=click.Choice(["refuse", "best"]), default="refuse", show_default=True,
        help="If no version of a request fits the time: refuse it, or answer as far as possible.",
    ),
    click.option(
        "--requests", "n_requests", type=click.IntRange(1, 100_000), default=N_REQUESTS,
        show_default=True, help="Number of requests from the workload.",
    ),
    click.option(
        "--cold", "n_cold", type=click.IntRange(0, 1000), default=N_COLD, show_default=True,
        help="Number of extra requests, each measured right after opening the engine.",
    ),
)  # fmt: skip


def workload_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a click command, which gets one `workload`: a `Workload` or None."""

    @functools.wraps(command)
    def call(
        *,
        workload: str | None,
        within: str | None,
        first_within: str | None,
        on_miss: OnMiss,
        n_requests: int,
        n_cold: int,
        **others: Any,
    ) -> None:
        asked = parse_workload(
            workload, within, first_within, on_miss=on_miss, n_requests=n_requests, n_cold=n_cold
        )
        command(workload=asked, **others)

    return _add_options(call)


def parse_workload(
    name: str | None,
    within: str | None = None,
    first_within: str | None = None,
    *,
    on_miss: OnMiss = "refuse",
    n_requests: int = N_REQUESTS,
    n_cold: int = N_COLD,
) -> Workload | None:
    """The workload that the options name; None if they name neither a workload nor a time. A time
    alone means requests of every task.

    Raises UsageError for an unknown workload or what is no time.
    """
    budget = Budget.parse(within, first_within)
    if name is None and budget is None:
        return None
    name = name or MIX
    typed = {
        "--workload": name,
        "--within": within,
        "--first-within": first_within,
        "--on-miss": on_miss if on_miss != "refuse" else None,
        "--requests": n_requests if n_requests != N_REQUESTS else None,
        "--cold": n_cold if n_cold != N_COLD else None,
    }
    return Workload(
        name,
        tuple(find_workload(name)),
        within_s=budget.within_s if budget else None,
        first_within_s=budget.first_within_s if budget else None,
        on_miss=on_miss,
        n_requests=n_requests,
        n_cold=n_cold,
        typed=tuple(
            word
            for option, value in typed.items()
            if value is not None
            for word in (option, str(value))
        ),
    )


def check_alone(workload: Workload, others: dict[str, object]) -> None:
    """Raise UsageError for options that mean nothing to a workload."""
    for option, value in others.items():
        if value:
            raise UsageError(
                f"{option} is for single tests, but --workload {workload.name} runs whole requests",
                next_step="leave one of them out; --requests sets the number of requests",
            )
