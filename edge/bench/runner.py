"""Run tests through `Engine.stream` and keep raw traces.

Every test runs once as a warm-up that is dropped; then all tests take turns, repetition by
repetition, so that heat and drift fall on all of them alike.
"""

import os
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

from boardfit.edge.bench.conditions import Conditions, disturbances, read_conditions
from boardfit.edge.bench.metrics import MIN_REPEATS, LoadTrace, Spread, measure, numbers, spreads
from boardfit.edge.bench.metrics import measure_load as load_figures
from boardfit.edge.bench.sampler import ResourceSampler, read_memory
from boardfit.edge.bench.workloads import Test, fixed_text, fixed_tokens, prompt_hash
from boardfit.edge.process.live import STATUS
from boardfit.edge.terminal.progress import PartProgress
from boardfit.edge.types import (
    Engine,
    GenerationConfig,
    HeatSample,
    MemorySample,
    Message,
    TokenEvent,
    Trace,
)

NO_TEMPLATE = "a base model without chat template: plain text is continued, no question answered"

# Tokens of one sustained repetition: seconds on a slow board, and shallow in every context.
N_GEN = 128
# The figure that a test is judged by.
_RATE = {"prefill": "prefill_tps", "decode": "decode_tps", "sustained": "decode_tps",
         "end-to-end": "end_to_end_s", "load": "load_s"}  # fmt: skip


class TokenTimes(Sequence[TokenEvent]):
    """Token events as their times alone. Memory is measured in this process, and a million events
    as objects of 160 bytes would show as the model's.
    """

    def __init__(self, events: Iterable[TokenEvent]) -> None:
        self._t_ns = array("q", (event.t_ns for event in events if event.token_id is not None))

    def __len__(self) -> int:
        return len(self._t_ns)

    @overload
    def __getitem__(self, index: int) -> TokenEvent: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenEvent]: ...
    def __getitem__(self, index: int | slice) -> TokenEvent | Sequence[TokenEvent]:
        if isinstance(index, slice):
            return [TokenEvent(0, "", t_ns) for t_ns in self._t_ns[index]]
        return TokenEvent(0, "", self._t_ns[index])


@dataclass
class TestRun:
    """All repetitions of one test: raw traces, figures, and what disturbed it."""

    test: Test
    prompt_sha256: str | None = None
    traces: list[Trace] = field(default_factory=list)
    loads: list[LoadTrace] = field(default_factory=list)
    figures: list[dict[str, float | int | None]] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, Spread | None]:
        return spreads(self.figures)

    def rates(self) -> list[float]:
        """One figure per repetition of which more is better: a rate, or one over a time."""
        name = _RATE[self.test.kind]
        values = [float(value) for f in self.figures if (value := f.get(name)) is not None]
        return [1 / value for value in values if value] if name.endswith("_s") else values


def run_tests(
    engine: Engine,
    tests: Sequence[Test],
    *,
    repeats: int,
    progress: PartProgress | None = None,
    sampler: ResourceSampler | None = None,
) -> list[TestRun]:
    """Run every test `repeats` times, interleaved, after one warm-up each. Raises EngineError when
    the engine fails; results so far are lost with it, on purpose.
    """
    longest = max(max(t.n_prompt, t.n_depth) for t in tests) + 1
    tokens = fixed_tokens(engine, longest)
    runs = [TestRun(test, prompt_hash(tokens[: prompt_length(test)])) for test in tests]
    turns = [*runs, *runs * repeats]
    total = len(turns)
    before = read_conditions()
    with sampler or ResourceSampler() as sampler:
        for done, run in enumerate(turns):
            if progress:
                progress(done, total, run.test.label)
            STATUS.set_label(run.test.label)
            trace = run_once(engine, run.test, tokens)
            run.traces += [trace] if done >= len(runs) else []  # the first of each warms up
    if progress:
        progress(total, total, "")
    after = read_conditions()
    for run in runs:
        finish(run, sampler, before, after)
        if run.test.kind == "end-to-end" and not engine.has_template:
            run.flags.append(NO_TEMPLATE)
    return runs


def run_sustained(
    engine: Engine, *, seconds: float, n_gen: int = N_GEN, progress: PartProgress | None = None
) -> TestRun:
    """Decode for `seconds` without a pause: the same short piece of work again and again, so that a
    slower repetition is a slower board and not a longer context. No warm-up is dropped.
    """
    n_gen = min(n_gen, engine.n_ctx - 2)
    prompt = fixed_tokens(engine, 1)
    run = TestRun(Test("sustained", 0, 0, n_gen), prompt_hash(prompt))
    config = GenerationConfig(max_tokens=n_gen + 1, ignore_eos=True)
    STATUS.set_label(run.test.label)
    before, started = read_conditions(), time.monotonic()
    with ResourceSampler() as sampler:
        while True:
            elapsed = time.monotonic() - started
            if elapsed >= seconds and len(run.traces) >= 2 * MIN_REPEATS:
                break
            if progress:
                progress(int(min(elapsed, seconds)), max(1, int(seconds)), run.test.label)
            run.traces.append(record(engine, prompt, config, time.monotonic_ns()))
    finish(run, sampler, before, read_conditions())
    return run


def prompt_length(test: Test) -> int:
    """Prompt tokens: what is prefilled, or the depth; decode needs one to start from."""
    return max(test.n_prompt, test.n_depth, 1)


def run_once(engine: Engine, test: Test, tokens: Sequence[int]) -> Trace:
    if test.kind == "end-to-end":
        return run_conversation(engine, test)
    prompt = tokens[: prompt_length(test)]
    if test.kind == "prefill":
        engine.reset()
        config = GenerationConfig(max_tokens=1, ignore_eos=True)
    else:
        # One more than is counted: the first token's time belongs to the prefill.
        config = GenerationConfig(max_tokens=test.n_gen + 1, ignore_eos=True)
    return record(engine, prompt, config, time.monotonic_ns())


def run_conversation(engine: Engine, test: Test) -> Trace:
    """As a user meets it: template, tokenization, sampling and detokenizing inside the clock."""
    engine.reset()
    start_ns = time.monotonic_ns()
    text = fixed_text(test.n_prompt // 3)  # a base model has no template, and continues it
    chat = engine.has_template
    prompt = engine.render([Message("user", text)]) if chat else engine.prompt(text)
    config = GenerationConfig(max_tokens=test.n_gen, ignore_eos=True, temperature=0.7, seed=1)
    return record(engine, prompt, config, start_ns)


def record(engine: Engine, prompt: Sequence[int], config: GenerationConfig, start_ns: int) -> Trace:
    events: list[TokenEvent] = list(STATUS.follow(engine.stream(prompt, config), len(prompt)))
    trace = Trace.of_stream(start_ns, prompt, events, engine.last_start)
    # Outside the clock: even a request shorter than the sampling interval has one look.
    return replace(trace, memory=(read_memory(),), events=TokenTimes(events))


def finish(run: TestRun, sampler: ResourceSampler, before: Conditions, after: Conditions) -> None:
    """Attach memory and heat to the traces and derive the figures."""
    heat: set[HeatSample] = set()
    for i, trace in enumerate(run.traces):
        heat.update(sampler.heat_around(trace))
        run.traces[i] = sampler.attach(trace)
        run.figures.append(numbers(measure(run.traces[i])))
    run.flags = disturbances(before, after, sorted(heat, key=lambda h: h.t_ns), run.rates())


def measure_load(
    open_engine: Callable[[], Engine], model_path: Path, *, repeats: int, cold: bool
) -> TestRun:
    """Time opening the engine and the first token after it, `repeats` times. Cold: the kernel was
    asked to drop the file from the page cache, which it does not where another process maps it.
    """
    run = TestRun(Test("load", 0, 0, 0, "cold" if cold else "warm"))
    STATUS.set_label(run.test.label)
    before = read_conditions()
    for _ in range(repeats):
        dropped = drop_page_cache(model_path) if cold else False
        start_ns = time.monotonic_ns()
        with closing(open_engine()) as engine:
            loaded_ns = time.monotonic_ns()
            config = GenerationConfig(max_tokens=1, ignore_eos=True)
            first = next(iter(engine.stream(fixed_tokens(engine, 8), config)))
            memory: MemorySample = read_memory()
        trace = LoadTrace(start_ns, loaded_ns, first.t_ns, (memory,))
        run.loads.append(trace)
        run.figures.append(load_figures(trace))
        if cold and not dropped:
            run.flags = ["page cache could not be dropped: the cold figure is a warm one"]
            return run
    run.flags = disturbances(before, read_conditions(), (), [])
    return run


def drop_page_cache(path: Path) -> bool:
    """Ask the kernel to forget a file's clean pages. False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
