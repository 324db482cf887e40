"""The entrants of a race, bundles with thread counts, and their turns: one process, one job."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import boardfit.edge.errors
from boardfit.edge.bench.conditions import find_drift
from boardfit.edge.bench.metrics import measure, measure_load, numbers
from boardfit.edge.bench.runner import TestRun
from boardfit.edge.bench.trace_rows import expand_load, expand_trace
from boardfit.edge.bench.workloads import Test
from boardfit.edge.bundle.bundle import Bundle
from boardfit.edge.engines import ENGINES, is_installed
from boardfit.edge.engines.settings import EngineSettings, default_threads, usable_cpus
from boardfit.edge.errors import (
    EdgeError,
    EngineError,
    EngineMissingError,
    IntegrityError,
    UsageError,
)
from boardfit.edge.process.child import python_argv, run_child
from boardfit.edge.process.last_words import explain_death
from boardfit.edge.terminal.progress import PartProgress
from boardfit.edge.units import printable

_TAIL_LINES = 8


@dataclass(frozen=True)
class Entrant:
    """One bundle with one number of threads."""

    bundle: Bundle
    n_threads: int

    @property
    def engine(self) -> str:
        return self.bundle.plan.engine

    @property
    def recipe(self) -> str:
        return self.bundle.plan.recipe

    @property
    def label(self) -> str:
        plural = "s" if self.n_threads > 1 else ""
        return f"{self.engine} {self.recipe}, {self.n_threads} thread{plural}"


def make_entrants(bundles: Sequence[Bundle], n_threads: Sequence[int] = ()) -> list[Entrant]:
    """Every bundle with every number of threads: those given, else one, half of the cores and all.
    Raises UsageError, or EngineMissingError for an engine that is not installed here.
    """
    if len({bundle.id for bundle in bundles}) < len(bundles):
        raise UsageError("a bundle is named twice")
    made_from = [(bundle, bundle.manifest["model"].get("source")) for bundle in bundles]
    # Bundles that do not name their source are each their own.
    sources = {
        str((source.get("fingerprint") if isinstance(source, dict) else None) or bundle.id)
        for bundle, source in made_from
    }
    if len(sources) > 1:
        names = ", ".join(sorted(printable(bundle.name, 40) for bundle in bundles))
        raise UsageError(
            f"these bundles were made from different models: {names}",
            next_step="race bundles of one source, or measure them apart with edge bench",
        )
    for bundle in bundles:
        engine = bundle.plan.engine
        if engine in ENGINES and not is_installed(engine):
            raise EngineMissingError(
                f"{bundle.path} runs on {engine}, which is not installed",
                next_step=ENGINES[engine].pip_line,
            )
    wanted = sorted(set(n_threads)) or thread_counts()
    for n in wanted:
        if n > usable_cpus():
            raise UsageError(f"{n} threads; this machine has {usable_cpus()} cores to use")
    return [Entrant(bundle, n) for bundle in bundles for n in wanted]


def thread_counts() -> list[int]:
    """One, half of the cores and all of them, without doubles."""
    n_cores = default_threads()
    return sorted({1, max(1, n_cores // 2), n_cores})


@dataclass
class Course:
    """What one entrant has shown so far: runs by test, loads, and the engine's own description."""

    entrant: Entrant
    runs: list[TestRun]
    loads: TestRun = field(default_factory=lambda: TestRun(Test("load", 0, 0, 0, "warm")))
    info: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)

    def find_median(self, test: Test, name: str) -> float | None:
        run = next(run for run in (*self.runs, self.loads) if run.test == test)
        figure = run.metrics().get(name)
        return None if figure is None else float(figure["median"])

    @property
    def flags(self) -> list[str]:
        return sorted({flag for run in self.runs for flag in run.flags})


def run_race(
    entrants: Sequence[Entrant],
    tests: Sequence[Test],
    n_ctx: int,
    *,
    rounds: int,
    progress: PartProgress | None = None,
) -> list[Course]:
    """Every entrant takes one turn per round, the order reversed in every other round. Raises
    EngineError when a process dies, and every error that an engine raised there.
    """
    courses = [Course(entrant, [TestRun(test) for test in tests]) for entrant in entrants]
    total, done = len(courses) * rounds, 0
    for number in range(rounds):
        for course in courses if number % 2 == 0 else reversed(courses):
            if progress:
                progress(done, total, course.entrant.label)
            take_turn(course, tests, n_ctx)
            done += 1
    if progress:
        progress(total, total, "")
    for course in courses:
        for run in course.runs:
            run.flags += find_drift(run.rates())
    return courses


def take_turn(course: Course, tests: Sequence[Test], n_ctx: int) -> None:
    job = {"task": "measure", "tests": [asdict(test) for test in tests]}
    opened, *answers = ask(course.entrant, n_ctx, job)
    course.info, course.baseline = opened["info"], opened["baseline"]
    load = expand_load(opened["load"])
    course.loads.loads.append(load)
    course.loads.figures.append(measure_load(load))
    for run, found in zip(course.runs, answers, strict=True):
        trace = expand_trace(found["trace"])
        run.traces.append(trace)
        run.figures.append(numbers(measure(trace)))
        run.prompt_sha256 = found["prompt_sha256"]
        run.flags += [flag for flag in found["flags"] if flag not in run.flags]


def ask(entrant: Entrant, n_ctx: int, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Do one job in a new process and wait for all its answers."""
    settings = EngineSettings.to_use(entrant.bundle.plan).replace(
        n_threads=entrant.n_threads, n_ctx=n_ctx
    )
    request = {
        **job,
        "engine": entrant.engine,
        "bundle": str(entrant.bundle.path.absolute()),
        "bundle_id": entrant.bundle.id,
        "settings": asdict(settings),
    }
    with tempfile.TemporaryFile() as log:
        process = run_child(
            python_argv("boardfit.edge.race.child"),
            input=json.dumps(request).encode() + b"\n",
            stderr=log,
        )
        answers = [json.loads(line) for line in process.stdout.splitlines()]
        if answers and (error := answers[-1].get("error")):
            kind = getattr(boardfit.edge.errors, error["type"], EngineError)
            assert issubclass(kind, EdgeError)
            raise kind(f"{entrant.label}: {error['message']}", next_step=error["next_step"])
        if death := explain_death(entrant.label, process.returncode):
            raise death
        if process.returncode:
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
            tail = "; ".join(printable(line) for line in lines)
            raise EngineError(f"{entrant.label} ended with code {process.returncode}: {tail}")
    return answers


# ---- do the entrants choose the same tokens? A race with a broken copy has no meaning ------------

#: Tokens of each greedy answer that the others are held against.
N_GEN = 48
#: Two 4-bit copies of one model choose the same token nine times out of ten or more; models too
#: small or too little trained to be sure of anything less often. Below, one of them is broken.
LEAST = 0.6


@dataclass(frozen=True)
class EntrantAgreement:
    """Share of positions where a bundle would have chosen the first bundle's token."""

    entrant: Entrant
    share: float
    n_tokens: int


def compare_answers(entrants: Sequence[Entrant], n_ctx: int) -> list[EntrantAgreement]:
    """One row per bundle, the first with itself left out."""
    by_bundle: dict[str, Entrant] = {}
    for entrant in entrants:
        by_bundle.setdefault(entrant.bundle.id, entrant)
    first, *others = by_bundle.values()
    if not others:
        return []
    (reply,) = ask(first, n_ctx, {"task": "answer", "n_gen": N_GEN})
    rows = []
    for entrant in others:
        job = {"task": "follow", "prompts": reply["prompts"], "answers": reply["answers"]}
        (heard,) = ask(entrant, n_ctx, job)
        answers = zip(reply["answers"], heard["predicted"], strict=True)
        same = [a == b for pair in answers for a, b in zip(*pair, strict=True)]
        rows.append(EntrantAgreement(entrant, sum(same) / len(same), len(same)))
    return rows


def check_agreement(first: Entrant, rows: Sequence[EntrantAgreement]) -> None:
    """Raise IntegrityError for a bundle that answers otherwise than the first."""
    for row in rows:
        if row.share < LEAST:
            raise IntegrityError(
                f"{row.entrant.engine} {row.entrant.recipe} and {first.engine} {first.recipe} "
                f"choose the same token at {row.share:.0%} of {row.n_tokens} positions; at least "
                f"{LEAST:.0%} is expected of two copies of one model",
                next_step="look at both quality cards (edge bundle show), or race them all the "
                "same with --any-answers",
            )
