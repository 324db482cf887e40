"""What `edge bench` measures, and the command that repeats it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from boardfit.edge.bench.deadline_run import Workload
from boardfit.edge.deadline.budget import Budget, OnMiss
from boardfit.edge.errors import UsageError
from boardfit.edge.tasks.requests import MIX, find_workload
from boardfit.edge.terminal.options import pass_value
from boardfit.edge.types import Thinking

DEFAULT_REPEATS = 5
N_REQUESTS, N_COLD = 50, 5


@dataclass(frozen=True)
class BenchRequest:
    """A model and how to measure it. `n_threads`, `n_ctx` and `kv_type` are the plan's where they
    are None. `sustained_min` adds minutes of decode. `workload` replaces all single tests.
    """

    model: Path
    quick: bool = False
    sustained_min: float | None = None
    cool_below: float | None = None
    repeats: int = DEFAULT_REPEATS
    n_gen: int | None = None
    n_threads: int | None = None
    n_ctx: int | None = None
    kv_type: str | None = None
    shapes: tuple[str, ...] = ()
    check_memory: bool | None = None
    workload: Workload | None = None
    thinking: Thinking | None = None
    template_vars: tuple[str, ...] = ()

    @classmethod
    def from_options(
        cls,
        model: Path,
        *,
        quick: bool,
        protocol: str | None,
        minutes: float,
        no_memory_check: bool,
        workload: Workload | None,
        **others: Any,
    ) -> BenchRequest:
        """Check the command's options together. Raises UsageError for what excludes each other."""
        if re.match(r"\w+:/", str(model)):  # a path has lost one slash of two
            target = str(model).replace(":/", "://", 1)
            raise UsageError(
                f"{target} is a board; this measures here",
                next_step=f"edge slots bench {target} measures there and brings the results back",
            )
        if quick and protocol == "standard":
            raise UsageError("--quick and --protocol standard exclude each other")
        if workload is not None:
            single = {"--quick": quick, "--protocol": protocol, "--gen": others["n_gen"]}
            check_alone(workload, single)
        return cls(
            model=model,
            quick=quick or protocol in ("quick", "sustained"),
            sustained_min=minutes if protocol == "sustained" else None,
            check_memory=False if no_memory_check else None,
            workload=workload,
            **others,
        )

    def repeat_command(self) -> str:
        """The command that repeats this run, without folders of this machine."""
        words = ["edge", "bench", self.model.name]
        if self.sustained_min is not None:
            words += ["--protocol", "sustained", "--minutes", f"{self.sustained_min:g}"]
        elif self.quick:
            words.append("--quick")
        is_single, cool_below = self.workload is None, self.cool_below
        options = [
            ("--repeats", self.repeats if is_single and self.repeats != DEFAULT_REPEATS else None),
            ("--gen", self.n_gen),
            ("--threads", self.n_threads),
            ("--ctx", self.n_ctx),
            ("--kv-type", self.kv_type),
            ("--thinking", self.thinking),
            *(("--template-var", variable) for variable in self.template_vars),
            *(("--shape", shape) for shape in self.shapes),
            ("--cool-below", f"{cool_below:g}" if is_single and cool_below is not None else None),
        ]
        for option, value in options:
            words += [option, str(value)] if value is not None else []
        return shlex.join([*words, *(self.workload.typed if self.workload else ())])


# ---- options of a workload -----------------------------------------------------------------------


def parse_workload(
    workload: str | None,
    within: str | None = None,
    first_within: str | None = None,
    *,
    on_miss: OnMiss = "refuse",
    n_requests: int = N_REQUESTS,
    n_cold: int = N_COLD,
) -> Workload | None:
    """The workload that the options name, None if they name neither one nor a time. A time alone
    means requests of every task. Raises UsageError.
    """
    budget = Budget.parse(within, first_within)
    if workload is None and budget is None:
        return None
    name = workload or MIX
    typed = {
        "--workload": name,
        "--within": within,
        "--first-within": first_within,
        "--on-miss": on_miss if on_miss != "refuse" else None,
        "--requests": n_requests if n_requests != N_REQUESTS else None,
        "--cold": n_cold if n_cold != N_COLD else None,
    }
    given = [(option, value) for option, value in typed.items() if value is not None]
    return Workload(
        name,
        tuple(find_workload(name)),
        within_s=budget.within_s if budget else None,
        first_within_s=budget.first_within_s if budget else None,
        on_miss=on_miss,
        n_requests=n_requests,
        n_cold=n_cold,
        typed=tuple(word for option in given for word in map(str, option)),
    )


#: Adds the options to a click command, which gets one `workload`: a `Workload` or None.
workload_options = pass_value(
    "workload",
    parse_workload,
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


def check_alone(workload: Workload, others: dict[str, object]) -> None:
    """Raise UsageError for options that mean nothing to a workload."""
    for option, value in others.items():
        if value:
            raise UsageError(
                f"{option} is for single tests, but --workload {workload.name} runs whole requests",
                next_step="leave one of them out; --requests sets the number of requests",
            )
