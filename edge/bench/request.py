"""What `edge bench` measures, and the command that repeats it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.edge.bench.deadline_options import check_alone
from boardfit.edge.bench.deadline_run import Workload
from boardfit.edge.errors import UsageError
from boardfit.edge.types import Thinking

DEFAULT_REPEATS = 5


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
        if self.repeats != DEFAULT_REPEATS and self.workload is None:
            words += ["--repeats", str(self.repeats)]
        for option, value in (
            ("--gen", self.n_gen),
            ("--threads", self.n_threads),
            ("--ctx", self.n_ctx),
            ("--kv-type", self.kv_type),
        ):
            words += [option, str(value)] if value is not None else []
        words += ["--thinking", self.thinking] if self.thinking is not None else []
        for variable in self.template_vars:
            words += ["--template-var", variable]
        for shape in self.shapes:
            words += ["--shape", shape]
        if self.workload is not None:
            words += self.workload.typed
        elif self.cool_below is not None:
            words += ["--cool-below", f"{self.cool_below:g}"]
        return shlex.join(words)
