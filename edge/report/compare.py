"""Compare runs with a baseline: ratios with intervals, and a verdict when no difference is seen.

Tests are paired by what was run (kind, prompt, depth, tokens generated). A figure's ratio is the
geometric mean of its tests' ratios of medians. The interval is the 2.5 to 97.5 % range of a seeded
bootstrap (Efron and Tibshirani 1993, chapters 13 and 16) that draws, with replacement, first the
runs of a side and then their repetitions: several runs of one set-up show what one run cannot, how
much changes between runs.
"""

import math
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from boardfit.edge.bench.metrics import quantile
from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.report.figures import Record, Run, machine_key, median
from boardfit.edge.units import did_you_mean, printable

SEED = 20260101
N_DRAWS = 2000
# Below this many repetitions a bootstrap means nothing.
MIN_REPEATS = 3


@dataclass(frozen=True)
class Figure:
    """A figure that runs are compared by: its name on the command line, where it is stored."""

    name: str
    kind: str
    metric: str
    more_is_better: bool
    label: str


FIGURES = (
    Figure("decode", "decode", "decode_tps", True, "decode, tokens/s"),
    Figure("prefill", "prefill", "prefill_tps", True, "prefill, tokens/s"),
    Figure("ttft", "end-to-end", "ttft_s", False, "time to first token"),
    Figure("answer", "end-to-end", "end_to_end_s", False, "whole answer"),
    Figure("latency", "inference", "latency_s", False, "latency per inference"),
    Figure("load", "load", "load_s", False, "load"),
    Figure("memory", "", "peak_anon_bytes", False, "anonymous memory"),
)


@dataclass(frozen=True)
class Side:
    """One set-up: the runs of it, newest last, under one label."""

    label: str
    runs: tuple[Run, ...]

    @property
    def head(self) -> Record:
        return self.runs[-1].head


@dataclass(frozen=True)
class Ratio:
    """`figure` of one side over that of the first. `n` repetitions on each side."""

    figure: Figure
    value: float
    low: float | None
    high: float | None
    n: tuple[int, int]
    n_tests: int

    @property
    def is_significant(self) -> bool | None:
        """Whether there is a difference: the interval leaves out 1. None without an interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 1 <= self.high

    @property
    def verdict(self) -> str:
        if self.is_significant is None:
            return "too few repetitions to decide"
        if not self.is_significant:
            return "no difference seen"
        better = (self.value > 1) == self.figure.more_is_better
        return "better" if better else "worse"


# ---- what is alike -------------------------------------------------------------------------------


def dimensions(run: Run) -> dict[str, tuple[Any, str]]:
    """What a run is of, by the dimensions in which two runs may differ: identity and name."""
    head = run.head
    artifact, engine, settings = head["artifact"], head["engine"], head["settings"]
    hashes = {test_key(record): record["test"].get("prompt_sha256") for record in run.records}
    known = artifact.get("sha256") or (artifact.get("name"), artifact.get("n_bytes"))
    name = f"{artifact.get('name')} {engine.get('quant') or ''}".rstrip()
    used = tuple(map(settings.get, ("n_threads", "n_ctx", "n_batch", "kv_type")))
    tool = (head.get("imported") or {}).get("tool")
    return {
        "machine": (machine_key(head), run.machine_name),
        "artifact": (known, name),
        "engine": (tuple(map(engine.get, ("name", "version", "build"))), run.engine_text),
        "tool": (tool, str(tool or "edge bench")),
        "settings": (used, run.settings_text),
        "prompts": ({key: found for key, found in hashes.items() if found}, "its own prompts"),
    }


def differences(a: Run, b: Run) -> dict[str, str]:
    """The dimensions in which two runs differ, and how."""
    others = dimensions(b)
    pairs = {key: (one, others[key]) for key, one in dimensions(a).items()}
    found = []
    for key, ((one, _), (two, _)) in pairs.items():
        if key == "prompts":
            one, two = (
                {test: part[test] for test in one.keys() & two.keys()} for part in (one, two)
            )
        if key == "settings" and "machine" in found:  # another board has other cores and threads
            one, two = one[1:], two[1:]
        if one != two:
            found.append(key)
    names = {key: [printable(name, 80) for _, name in pairs[key]] for key in found}
    return {key: " against ".join(both) for key, both in names.items()}


def check_alike(first: Side, other: Side) -> None:
    """Raise InputError when sides differ in more than one dimension: a ratio would mix causes."""
    found = differences(first.runs[-1], other.runs[-1])
    if len(found) <= 1 and "prompts" not in found:
        return
    causes = "; ".join(f"{name}: {both}" for name, both in found.items())
    raise InputError(
        f"these runs differ in {' and '.join(found)}, so a ratio has no single cause ({causes})",
        next_step="use --unlike to compare them anyway",
    )


# ---- ratios --------------------------------------------------------------------------------------

TestKey = tuple[Any, ...]


def test_key(record: Record) -> TestKey:
    """What makes two tests one: kind and exact sizes, and what goes into a network."""
    test = record["test"]
    label = test.get("label") if test.get("kind") in ("inference", "deadline") else None
    return *map(test.get, ("kind", "n_prompt", "n_depth", "n_gen", "page_cache")), label


def samples(side: Side, figure: Figure) -> dict[TestKey, list[list[float]]]:
    """Test → per run its repetitions of a figure, or its median where they are not stored."""
    found: dict[TestKey, list[list[float]]] = {}
    for run in side.runs:
        for record in run.records:
            if figure.kind and record["test"].get("kind") != figure.kind:
                continue
            values = repetitions(record, figure.metric)
            if values:
                found.setdefault(test_key(record), []).append(values)
    return found


def repetitions(record: Record, metric: str) -> list[float]:
    """Positive repetitions of one figure, or its median where they are not stored."""
    stored = record.get("figures") or []
    values = [figures.get(metric) for figures in stored if isinstance(figures, Mapping)]
    known = [float(v) for v in values if isinstance(v, (int, float)) and v > 0]
    if known:
        return known
    value = median(record, metric)
    return [value] if value is not None and value > 0 else []


def ratio(first: Side, other: Side, figure: Figure, *, n_draws: int = N_DRAWS) -> Ratio | None:
    """One figure's ratio, None where the sides have no test of it in common."""
    a, b = samples(first, figure), samples(other, figure)
    pairs = [(a[key], b[key]) for key in a if key in b]
    if not pairs:
        return None
    pools = [(list(chain(*x)), list(chain(*y))) for x, y in pairs]
    value = _mean_ratio(pools)
    n = (min(len(x) for x, _ in pools), min(len(y) for _, y in pools))
    low = high = None
    if min(n) >= MIN_REPEATS:
        draw = random.Random(SEED)
        drawn = []
        for _ in range(n_draws):
            drawn.append(_mean_ratio([(_resample(x, draw), _resample(y, draw)) for x, y in pairs]))
        low, high = quantile(drawn, 0.025), quantile(drawn, 0.975)
    return Ratio(figure, value, low, high, n, len(pairs))


def _resample(runs: Sequence[Sequence[float]], draw: random.Random) -> list[float]:
    chosen = draw.choices(runs, k=len(runs)) if len(runs) > 1 else runs
    return [value for run in chosen for value in draw.choices(run, k=len(run))]


def _mean_ratio(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    logs = [math.log(statistics.median(b) / statistics.median(a)) for a, b in pairs]
    return math.exp(statistics.fmean(logs))


def compare(first: Side, other: Side) -> list[Ratio]:
    """All figures that both sides have, in the order of FIGURES."""
    return [found for figure in FIGURES if (found := ratio(first, other, figure)) is not None]


# ---- conditions for CI ---------------------------------------------------------------------------

_FORM = re.compile(r"^\s*([a-z]+)\s*(<|>)\s*(\d+(?:\.\d+)?)\s*x?\s*$")


@dataclass(frozen=True)
class Gate:
    """Fails when a figure's ratio is beyond `bound`. An interval that holds 1 is noise."""

    figure: str
    less: bool
    bound: float

    @property
    def text(self) -> str:
        return f"{self.figure}{'<' if self.less else '>'}{self.bound:g}x"

    def is_missed(self, ratios: Sequence[Ratio]) -> bool:
        """Raises InputError when the figure was not measured on both sides: nothing was checked."""
        found = next((r for r in ratios if r.figure.name == self.figure), None)
        if found is None:
            raise InputError(
                f"{self.text} cannot be checked: {self.figure} is not in both runs",
                next_step="measure both with the same edge bench command",
            )
        beyond = found.value < self.bound if self.less else found.value > self.bound
        return beyond and found.is_significant is not False


def parse_gate(text: str) -> Gate:
    """Raises UsageError on anything but FIGURE<RATIOx or FIGURE>RATIOx."""
    match = _FORM.match(text)
    names = [figure.name for figure in FIGURES]
    if not match:
        raise UsageError(
            f"not a condition: {text!r}", next_step="write for example --fail-if 'decode<0.95x'"
        )
    if match[1] not in names:
        raise UsageError(
            f"there is no figure {match[1]!r}.{did_you_mean(match[1], names)}",
            next_step=f"figures: {', '.join(names)}",
        )
    return Gate(match[1], match[2] == "<", float(match[3]))
