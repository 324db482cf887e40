"""Ask the requests of a workload within their budgets, and keep each outcome.

Warm: one engine, the requests one after the other, so that the KV cache holds the beginning that a
request shares with the one before. Cold: the engine newly opened for each request, its file dropped
from the page cache where the kernel lets us, and time predicted from what earlier runs stored.
"""

import copy
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from boardfit.edge.bench.conditions import read_conditions
from boardfit.edge.bench.deadline_summary import by_task, summarize
from boardfit.edge.bench.runner import TestRun, drop_page_cache, finish
from boardfit.edge.bench.sampler import ResourceSampler, read_memory
from boardfit.edge.bench.workloads import Test
from boardfit.edge.chat.session import Session
from boardfit.edge.chat.timed_open import draft_tokens, open_session
from boardfit.edge.deadline.budget import Budget, OnMiss
from boardfit.edge.engines import open_engine
from boardfit.edge.engines.target import OpenModel, engine_of
from boardfit.edge.errors import DeadlineError, UsageError
from boardfit.edge.tasks.requests import SEED, TaskRequest, make_requests
from boardfit.edge.tasks.task import Task
from boardfit.edge.tasks.use import TaskUse
from boardfit.edge.terminal.progress import PartProgress
from boardfit.edge.types import Engine, GenerationConfig, Message, Trace
from boardfit.edge.units import format_seconds

KIND = "deadline"
# What a row keeps of an outcome as it is.
_OUTCOME = ("met", "total_s", "first_s", "n_out", "n_possible", "shortened", "whole_sentence")
# A request's row, and its trace where it was accepted.
Asked = tuple[dict[str, Any], Trace | None]


@dataclass(frozen=True)
class Workload:
    """What is asked: `n_requests` of `tasks` in turn, within `within_s` (None: each task's own
    time), and `n_cold` more, each right after opening the engine. `typed` are the options that ask
    for it.
    """

    name: str
    tasks: tuple[Task, ...]
    within_s: float | None = None
    first_within_s: float | None = None
    on_miss: OnMiss = "refuse"
    n_requests: int = 50
    n_cold: int = 5
    seed: int = SEED
    typed: tuple[str, ...] = ()

    @property
    def n_draft(self) -> int:
        """Tokens that the engine may guess: for a mix of tasks as much as any of them may."""
        return max(draft_tokens(self.budget(task), task) for task in self.tasks)

    def budget(self, task: Task) -> Budget:
        if self.within_s is None and self.first_within_s is None:
            return task.budget(on_miss=self.on_miss)
        return Budget(self.within_s, self.first_within_s, self.on_miss)


@dataclass(frozen=True)
class DeadlineTest(Test):
    """The test of one workload, in a result. Times are None where each task has its own."""

    workload: str = ""
    within_s: float | None = None
    first_within_s: float | None = None
    on_miss: OnMiss = "refuse"
    start: Literal["cold", "warm"] = "warm"
    seed: int = SEED

    @property
    def label(self) -> str:
        limit = format_seconds(self.within_s)
        if self.within_s is None:
            first = self.first_within_s
            limit = f"{format_seconds(first)} to the first token" if first else "its own time"
        return f"{self.workload} within {limit}, {self.start}"


@dataclass
class DeadlineRun(TestRun):
    """A `TestRun` with a row for every request. `traces` and `figures` are of the accepted ones."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rates(self) -> list[float]:
        """None: requests of different lengths say nothing about drift."""
        return []

    def section(self) -> dict[str, Any]:
        """The entry `deadline` of a result."""
        counts = {"summary": summarize(self.rows), "by_task": by_task(self.rows)}
        return {**counts, "requests": self.rows, "notes": self.notes}


class Asker:
    """One session that requests of several tasks are put to."""

    def __init__(self, session: Session, engine: Engine) -> None:
        self.session = session
        self._engine = engine
        self._uses: dict[str, tuple[str | None, TaskUse]] = {}

    def place_request(self, request: TaskRequest) -> tuple[str | None, str]:
        """(system prompt, message) of a request, as this model's template takes them."""
        name = request.task.name
        if name not in self._uses:
            plain = not self._engine.has_template
            self._uses[name] = TaskUse(request.task, {}).place_system(self._engine, plain=plain)
        system, use = self._uses[name]
        return system, use.task.fill(request.values)

    def n_tokens(self, request: TaskRequest) -> int:
        """Tokens of the whole prompt: system prompt, template and message."""
        system, message = self.place_request(request)
        self.session.system = system
        return len(self.session.render([Message("user", message)]))

    def ask(self, request: TaskRequest, budget: Budget) -> Asked:
        """Its row, and its trace where it was accepted."""
        system, message = self.place_request(request)
        session = self.session
        session.system, session.messages = system, []
        config = GenerationConfig(max_tokens=request.n_answer, **request.task.sampling)  # type: ignore[arg-type]
        row: dict[str, Any] = {
            "task": request.task.name,
            "n_given": request.n_prompt,
            "n_answer": request.n_answer,
            "within_s": budget.within_s,
            "first_within_s": budget.first_within_s,
        }
        try:
            for _ in session.ask(message, config, budget=budget):
                pass
        except DeadlineError as error:
            need_s = needed_s(session, message, budget, config)
            refused = {"accepted": False, "why": str(error), "need_s": need_s}
            return row | refused | {"rightly": need_s > budget.limit_s}, None
        outcome, trace = session.last_outcome, session.last_trace
        answer = session.last_answer
        assert outcome is not None and trace is not None and answer is not None
        row |= {
            **{name: getattr(outcome, name) for name in _OUTCOME},
            "accepted": True,
            "seconds": dict(outcome.seconds),
            "n_prompt": trace.n_prompt,
            "n_reused": trace.n_reused,
            "finish_reason": answer.finish_reason,
            "adjustments": [a.kind for a in outcome.adjustments if a.kind != "reused"],
        }
        return row, replace(trace, memory=(read_memory(),))


def needed_s(session: Session, text: str, budget: Budget, config: GenerationConfig) -> float:
    """Seconds that the shortest version of `text` takes to the fewest tokens that are an answer, or
    to its first one if only that is limited; by the smaller model where there is one. The history
    and what is known of times stay as they were; the KV cache holds the request then.
    """
    asked = session.small or session  # the one that refused last
    assert asked.deadline is not None
    timing, messages = asked.deadline.timing, list(asked.messages)
    times = timing.times
    asked.system, asked.messages = session.system, list(session.messages)
    # A copy learns from it: the requests that follow find what they would have found.
    timing.times = copy.deepcopy(times)
    n_tokens = 1 if budget.within_s is None else budget.n_min
    try:
        began_s = time.monotonic()
        # A first token within a millisecond cannot be had: the shortest version is taken.
        least = Budget(first_within_s=1e-3, on_miss="best", tell=False)
        limited = replace(config, max_tokens=n_tokens, ignore_eos=True)
        for _ in asked.ask(text, limited, budget=least):
            pass
        return time.monotonic() - began_s
    finally:
        timing.times, asked.messages = times, messages


def run_workload(
    opened: OpenModel, model_path: Path, workload: Workload, progress: PartProgress | None = None
) -> list[DeadlineRun]:
    """The warm run and, with `n_cold`, the cold one. Closes the engine of `opened` in between, so
    that two never are in memory at once. Raises UsageError when the context is too small.
    """
    session = open_session(opened, timed=True)
    asker = Asker(session, opened.engine)
    requests, notes = fitting_requests(asker, opened.engine, workload)
    n_warm_up = len({request.task.name for request in requests})
    warm_up, asked = requests[:n_warm_up], requests[n_warm_up:]
    for_warm, for_cold = asked[: workload.n_requests], asked[workload.n_requests :]
    done, flags = itertools.count(), list[str]()

    def ask_warm(request: TaskRequest) -> Asked:
        return asker.ask(request, workload.budget(request.task))

    def ask_cold(request: TaskRequest) -> Asked:
        if not drop_page_cache(model_path):
            flags[:] = ["page cache could not be dropped: cold is as warm as the page cache"]
        return _ask_cold(opened, model_path, request, workload)

    def ask_all(
        some: Sequence[TaskRequest], label: str, ask: Callable[[TaskRequest], Asked]
    ) -> Iterator[Asked]:
        for request in some:
            if progress:
                progress(next(done), len(requests), label)
            yield ask(request)

    warm = _new_run(workload, "warm", for_warm, notes)
    for _ in ask_all(warm_up, "warming up", ask_warm):
        pass
    _sample(warm, ask_all(for_warm, warm.test.label, ask_warm))
    session.save_times()
    opened.engine.close()
    cold = _new_run(workload, "cold", for_cold, notes)
    _sample(cold, ask_all(for_cold, cold.test.label, ask_cold))
    cold.flags += flags
    return [run for run in (warm, cold) if run.rows]


def _sample(run: DeadlineRun, asked: Iterator[Asked]) -> None:
    """Keep what requests gave, and what disturbed them."""
    before = read_conditions()
    with ResourceSampler() as sampler:
        for row, trace in asked:
            run.rows.append(row)
            run.traces += [trace] if trace is not None else []
    finish(run, sampler, before, read_conditions())


def _ask_cold(opened: OpenModel, path: Path, request: TaskRequest, asked: Workload) -> Asked:
    """One request to an engine that was opened for it."""
    name = opened.bundle.plan.engine if opened.bundle else engine_of(path)
    with closing(open_engine(name, opened.model, opened.settings)) as engine:
        session = open_session(replace(opened, engine=engine), timed=True)
        asker = Asker(session, engine)
        session.system, _ = asker.place_request(request)
        session.prepare()  # what `edge chat` and `edge run` restore on start
        return asker.ask(request, asked.budget(request.task))


def fitting_requests(
    asker: Asker, engine: Engine, workload: Workload
) -> tuple[list[TaskRequest], list[str]]:
    """The requests to ask, one for each task to warm up with first, and a note for each task that
    the context does not hold. Raises UsageError when none fits.
    """
    tasks, notes = workload.tasks, list[str]()
    while tasks:
        n_requests = len(tasks) + workload.n_requests + workload.n_cold
        requests = make_requests(tasks, n_requests, engine.count, seed=workload.seed)
        needs: Counter[str] = Counter()
        for request in requests:
            needs |= Counter({request.task.name: asker.n_tokens(request) + request.n_answer + 1})
        kept = tuple(task for task in tasks if needs[task.name] <= engine.n_ctx)
        if kept == tasks:
            return requests, notes
        notes += [
            f"{task.name} was left out: its longest request takes {needs[task.name]} tokens with "
            f"its answer, and the context holds {engine.n_ctx}"
            for task in tasks
            if task not in kept
        ]
        tasks, least = kept, min(needs.values())
    raise UsageError(
        f"the context of {engine.n_ctx} tokens is too small for the workload {workload.name}: its "
        f"longest request takes {least} with its answer",
        next_step=f"--ctx {-(-least // 256) * 256}, where the model was trained for it, or a "
        "workload of shorter requests (edge tasks)",
    )


def _new_run(
    workload: Workload,
    start: Literal["cold", "warm"],
    requests: Sequence[TaskRequest],
    notes: Sequence[str],
) -> DeadlineRun:
    test = DeadlineTest(
        KIND,  # type: ignore[arg-type]
        max((r.n_prompt for r in requests), default=0),
        0,
        max((r.n_answer for r in requests), default=0),
        workload=workload.name,
        within_s=workload.within_s,
        first_within_s=workload.first_within_s,
        on_miss=workload.on_miss,
        start=start,
        seed=workload.seed,
    )
    texts = "\0".join(request.message for request in requests)
    return DeadlineRun(test, hashlib.sha256(texts.encode()).hexdigest(), notes=list(notes))
