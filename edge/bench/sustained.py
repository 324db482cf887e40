"""Decode for minutes without a pause, and compare the warm speed with the first burst.

The same short piece of work again and again (equal depth, equal tokens), so that a slower
repetition is a slower board and not a longer context. Heat, clock and memory are sampled all the
while.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from boardfit.edge.bench.conditions import read_conditions
from boardfit.edge.bench.runner import TestRun, finish, record
from boardfit.edge.bench.sampler import ResourceSampler
from boardfit.edge.bench.workloads import Test, fixed_tokens, prompt_hash
from boardfit.edge.process.live import STATUS
from boardfit.edge.terminal.progress import PartProgress
from boardfit.edge.types import Engine, GenerationConfig

# Tokens of one repetition: seconds on a slow board, and shallow in every context.
N_GEN = 128
# The first and the last tenth of the time are compared, each at least this many repetitions.
SHARE, MIN_REPEATS = 0.1, 2


def run_sustained(
    engine: Engine, *, seconds: float, n_gen: int = N_GEN, progress: PartProgress | None = None
) -> TestRun:
    """Decode for `seconds`; a repetition that has begun is finished, and there are at least as many
    as the ratio needs. No warm-up is dropped: the first burst is half of the answer.
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


def sustained_ratio(points: Sequence[tuple[float, float]]) -> float | None:
    """Median rate of the last tenth of the time over that of the first; `points` are (seconds,
    rate) in the order of time. None below four of them.
    """
    if len(points) < 2 * MIN_REPEATS:
        return None
    span = points[-1][0] - points[0][0]
    first = [rate for t, rate in points if t - points[0][0] <= SHARE * span]
    last = [rate for t, rate in points if points[-1][0] - t <= SHARE * span]
    first = first if len(first) >= MIN_REPEATS else [rate for _, rate in points[:MIN_REPEATS]]
    last = last if len(last) >= MIN_REPEATS else [rate for _, rate in points[-MIN_REPEATS:]]
    burst = statistics.median(first)
    return statistics.median(last) / burst if burst else None
