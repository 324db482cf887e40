"""Options of `edge bench` for a workload and its time limits."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from boardfit.edge.bench.deadline_run import Workload
from boardfit.edge.deadline.budget import Budget
from boardfit.edge.errors import UsageError
from boardfit.edge.tasks.requests import MIX, SEED, find_workload

_F = TypeVar("_F", bound=Callable[..., Any])

N_REQUESTS, N_COLD = 50, 5

_OPTIONS = (
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


def workload_options(command: _F) -> _F:
    """Add the options to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_workload(options: dict[str, Any]) -> Workload | None:
    """The workload that the options name; None if they name neither a workload nor a time. A time
    alone means requests of every task.

    Raises UsageError for an unknown workload or what is no time.
    """
    name = options["workload"]
    budget = Budget.parse(options["within"], options["first_within"])
    if name is None and budget is None:
        return None
    name = name or MIX
    return Workload(
        name,
        tuple(find_workload(name)),
        budget.within_s if budget else None,
        budget.first_within_s if budget else None,
        options["on_miss"],
        options["n_requests"],
        options["n_cold"],
    )


def check_alone(workload: Workload, others: dict[str, object]) -> None:
    """Raise UsageError for options that mean nothing to a workload."""
    for option, value in others.items():
        if value:
            raise UsageError(
                f"{option} is for single tests, but --workload {workload.name} runs whole requests",
                next_step="leave one of them out; --requests sets the number of requests",
            )


def workload_words(workload: Workload, options: dict[str, Any]) -> str:
    """The options as they are typed, to repeat a run."""
    words = ["--workload", workload.name]
    for option, key in (("--within", "within"), ("--first-within", "first_within")):
        words += [option, str(options[key])] if options[key] is not None else []
    words += ["--on-miss", workload.on_miss] if workload.on_miss != "refuse" else []
    words += ["--requests", str(workload.n_requests)] if workload.n_requests != N_REQUESTS else []
    words += ["--cold", str(workload.n_cold)] if workload.n_cold != N_COLD else []
    assert workload.seed == SEED
    return shlex.join(words)
