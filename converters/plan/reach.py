"""Plan backwards: find the recipes that answer a workload in a given time on a board.

A workload has a number of tokens to read and to write (`boardfit.edge.tasks`). A candidate takes a
range of seconds for them, from the bounds of its speeds. It is in time when the likely seconds are.
The result also states whether the high bound is. A candidate that is in time stays in time with a
longer limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from boardfit.edge.deadline.time_model import Span
from boardfit.edge.errors import DeadlineError, UsageError
from boardfit.edge.tasks.requests import find_workload
from boardfit.edge.tasks.task import Task
from boardfit.edge.units import format_seconds

if TYPE_CHECKING:
    from boardfit.converters.plan.candidate import Candidate
    from boardfit.converters.plan.planner import Planner

Reach = Literal["sure", "likely", "no"]

#: Requests of so large a share are no longer than what is planned for.
SHARE = 0.9
# A chat template writes a few tokens around each turn (ChatML: 5, Llama 3: 6), three turns here.
_TEMPLATE_TOKENS = 18
_CHARACTERS_PER_TOKEN = 4  # English, ordinary tokenizers
_CONTEXT_STEP = 256


@dataclass(frozen=True)
class Need:
    """One task and its time: behind a system prompt of `n_past` tokens that the KV cache holds,
    `n_prompt` are read and `n_answer` written; `n_ctx` holds the longest request there is.
    """

    task: str
    n_past: int
    n_prompt: int
    n_answer: int
    n_ctx: int
    within_s: float | None
    first_within_s: float | None


@dataclass(frozen=True)
class Answer:
    """Seconds to the first token and to the last."""

    first: Span
    whole: Span

    def reach(self, need: Need) -> Reach:
        """Whether both limits are kept at the high bound, at the likely one, or not."""
        pairs = ((self.first, need.first_within_s), (self.whole, need.within_s))
        limits = [(span, limit) for span, limit in pairs if limit is not None]
        if all(span.high <= limit for span, limit in limits):
            return "sure"
        return "likely" if all(span.mid <= limit for span, limit in limits) else "no"


@dataclass(frozen=True)
class Nearest:
    """The least seconds that a board could keep: of the whole answer, and of its first token."""

    within_s: float
    first_within_s: float | None

    @property
    def options(self) -> str:
        """As it is asked for on the command line."""
        first = self.first_within_s
        tail = "" if first is None else f" --first-within {_argument(first)}"
        return f"--within {_argument(self.within_s)}{tail}"


def parse_needs(
    workload: str | None, within_s: float | None, first_within_s: float | None
) -> tuple[Need, ...]:
    """`workload_needs` from the command line; none without a workload.

    Raises UsageError for a time without a workload.
    """
    if workload is not None:
        return workload_needs(workload, within_s, first_within_s)
    if within_s is None and first_within_s is None:
        return ()
    raise UsageError(
        "a time is planned for with the requests that are to be answered in it",
        next_step="add --workload customer-service, or another one of `edge tasks`; a first token"
        " alone is --max-ttft",
    )


def workload_needs(
    workload: str, within_s: float | None, first_within_s: float | None
) -> tuple[Need, ...]:
    """What a workload's tasks need; without a time, each has its own.

    Raises UsageError for an unknown workload.
    """
    own = within_s is None and first_within_s is None
    return tuple(
        need_of(task, task.within_s, task.first_within_s)
        if own
        else need_of(task, within_s, first_within_s)
        for task in find_workload(workload)
    )


def need_of(task: Task, within_s: float | None, first_within_s: float | None) -> Need:
    n_past = _tokens(task.system or "")
    frame = _TEMPLATE_TOKENS + _tokens(task.message)
    longest = n_past + frame + task.prompt.high + task.answer.high
    return Need(
        task.name,
        n_past,
        frame + task.prompt.quantile(SHARE),
        task.answer.quantile(SHARE),
        -(-longest // _CONTEXT_STEP) * _CONTEXT_STEP,
        within_s,
        first_within_s,
    )


def context_of(needs: Sequence[Need]) -> int:
    """Tokens of context that hold every request."""
    return max(need.n_ctx for need in needs)


def answer_of(planner: Planner, candidate: Candidate, need: Need) -> Answer | None:
    """Predicted seconds of a request on this candidate; None where no speed is known.

    The speeds of a candidate are those of 512 prompt tokens and a depth of 256; the model of
    `boardfit.device_profiles.cost.speed` carries them to the lengths of this request.
    """
    speed, base = candidate.speed, candidate.predicted
    if not speed.prefill_tps or not speed.decode_tps:
        return None
    depth = need.n_past + need.n_prompt + need.n_answer // 2
    there = planner.speed_at(candidate, need.n_past + need.n_prompt, depth)
    prefill_tps, decode_tps = speed.prefill_tps, speed.decode_tps
    if there.prefill_tps and base.prefill_tps:
        prefill_tps *= there.prefill_tps / base.prefill_tps
    if there.decode_tps and base.decode_tps:
        decode_tps *= there.decode_tps / base.decode_tps
    n_users = planner.options.n_users
    return bounded_answer(
        need, prefill_tps / n_users, decode_tps / n_users, speed.prefill_bound, speed.decode_bound
    )


def bounded_answer(
    need: Need, prefill_tps: float, decode_tps: float, prefill_bound: float, decode_bound: float
) -> Answer:
    """Seconds of a request at these rates in tokens per second, which may be off by the bounds."""
    token = _bounded(1 / decode_tps, decode_bound)
    first = _bounded(need.n_prompt / prefill_tps, prefill_bound) + token
    rest = need.n_answer - 1
    return Answer(first, first + Span(rest * token.low, rest * token.mid, rest * token.high))


def _bounded(seconds: float, bound: float) -> Span:
    return Span(seconds / (1 + bound), seconds, seconds * (1 + bound))


def answers_of(planner: Planner, candidate: Candidate) -> list[tuple[Need, Answer]] | None:
    """Every need with its answer; None where no speed is known."""
    found = []
    for need in planner.options.needs:
        answer = answer_of(planner, candidate, need)
        if answer is None:
            return None
        found.append((need, answer))
    return found


def reach_of(planner: Planner, candidate: Candidate) -> Reach:
    """The weakest verdict among all tasks."""
    answers = answers_of(planner, candidate)
    if answers is None:
        return "no"
    reached = {answer.reach(need) for need, answer in answers}
    return "no" if "no" in reached else "likely" if "likely" in reached else "sure"


def choose_for_needs(planner: Planner) -> Candidate | None:
    """The most preferred recipe that fits and is in time; None when none is. Independent of the
    ladder of contexts: the workload says how long the context is.
    """
    n_ctx = planner.options.n_ctx or context_of(planner.options.needs)
    found = [planner.best(weights, n_ctx) for weights in planner.weights]
    fast = [c for c in found if planner.fits(c) and planner.in_time(c)]
    return min(fast, key=lambda c: planner.preference(c.weights), default=None)


def nearest(planner: Planner) -> Nearest | None:
    """The least seconds with which the board would do, rounded up; None when nothing fits or no
    speed is known. Asked for again, they are kept.
    """
    options = planner.options
    n_ctx = options.n_ctx or context_of(options.needs)
    best: tuple[float, Nearest] | None = None
    for weights in planner.weights:
        candidate = planner.best(weights, n_ctx)
        answers = answers_of(planner, candidate) if planner.fits(candidate) else None
        if answers is None:
            continue
        worst, whole_s, first_s = 0.0, 0.0, 0.0
        for need, answer in answers:
            for span, limit in (
                (answer.whole, need.within_s),
                (answer.first, need.first_within_s),
            ):
                worst = max(worst, span.mid / limit if limit is not None else 0.0)
            whole_s = max(whole_s, answer.whole.mid, need.within_s or 0.0)
            first_s = max(first_s, answer.first.mid, need.first_within_s or 0.0)
        has_first = any(need.first_within_s is not None for need in options.needs)
        found = Nearest(_round_up(whole_s), _round_up(first_s) if has_first else None)
        if best is None or worst < best[0]:
            best = (worst, found)
    return best[1] if best else None


def refuse_needs(planner: Planner) -> None:
    """Raise DeadlineError when something fits, and time alone is short."""
    near = nearest(planner)
    n_ctx = planner.options.n_ctx or context_of(planner.options.needs)
    if near is None:
        if not any(planner.fits(planner.best(w, n_ctx)) for w in planner.weights):
            return
        raise DeadlineError(
            f"no speed is known for {planner.profile.name}: no time can be promised on it",
            next_step="run `edge probe` on the board, then plan for the profile it writes",
        )
    first = near.first_within_s
    tail = "" if first is None else f", first token {format_seconds(first)}"
    raise DeadlineError(
        f"{needs_text(planner.options.needs)} is impossible on {planner.profile.name}; nearest: "
        f"{format_seconds(near.within_s)}{tail}",
        next_step=f"{near.options}, a smaller model, or a faster board (--any-device lists them)",
    )


def needs_text(needs: Sequence[Need]) -> str:
    """`customer-service within 2.00 s`."""
    names = needs[0].task if len(needs) == 1 else "every task"
    within = {(need.within_s, need.first_within_s) for need in needs}
    if len(within) > 1:
        return f"{names} within its own time"
    whole, first = within.pop()
    parts = [f"within {format_seconds(whole)}"] if whole is not None else []
    parts += [f"with a first token within {format_seconds(first)}"] if first is not None else []
    return f"{names} {' and '.join(parts)}"


def _tokens(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def _round_up(seconds: float) -> float:
    """To two significant digits, never below."""
    if seconds <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    # Whole milliseconds are the least that is shown.
    step = max(step, 1e-3)
    return round(math.ceil(seconds / step - 1e-9) * step, 6)


def _argument(seconds: float) -> str:
    return f"{seconds:.10g}s" if seconds >= 1 else f"{seconds * 1e3:.10g}ms"
