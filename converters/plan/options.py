"""What a user asks of a plan: fixed choices, and the requests that must be answered in time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from boardfit.converters.formats.gguf.recipe import AS_IS, is_as_is
from boardfit.device_profiles.cost.memory import KV_BLOCK
from boardfit.edge.errors import UsageError
from boardfit.edge.tasks.requests import find_workload
from boardfit.edge.tasks.task import Task
from boardfit.edge.units import did_you_mean, format_seconds

Prefer = Literal["balanced", "quality", "speed", "memory"]
PREFERENCES: tuple[Prefer, ...] = ("balanced", "quality", "speed", "memory")

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


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the user has fixed; None leaves the choice to the plan. `has_imatrix` is whether the
    build will weigh activations, which changes some recipes' types. `min_tps` and `max_ttft_s` are
    promised to every user: tokens per second, and seconds from a question of `n_prompt` tokens to
    the first token. Each of `n_users` has a context of `n_ctx`, and they are served in turns.
    `is_served` counts the memory of `edge serve` too. `needs` are a workload's requests and their
    time; without `n_ctx`, the context holds them all.
    """

    recipe: str | None = None
    n_ctx: int | None = None
    kv_type: str | None = None
    n_threads: int | None = None
    n_ubatch: int | None = None
    prefer: Prefer = "balanced"
    has_imatrix: bool = False
    min_tps: float | None = None
    max_ttft_s: float | None = None
    n_prompt: int = 256
    n_users: int = 1
    is_served: bool = False
    needs: tuple[Need, ...] = ()

    def __post_init__(self) -> None:
        if is_as_is(self.recipe):
            object.__setattr__(self, "recipe", AS_IS)
        if self.prefer not in PREFERENCES:
            raise UsageError(
                f"unknown preference {self.prefer!r}; known: {', '.join(PREFERENCES)}."
                f"{did_you_mean(self.prefer, PREFERENCES)}"
            )
        if self.kv_type is not None and self.kv_type not in KV_BLOCK:
            raise UsageError(
                f"unknown KV cache type {self.kv_type!r}; known: {', '.join(KV_BLOCK)}."
                f"{did_you_mean(self.kv_type, KV_BLOCK)}"
            )
        for name in ("n_ctx", "n_threads", "n_ubatch", "n_prompt", "n_users"):
            value, low = getattr(self, name), 64 if name == "n_ctx" else 1
            if value is not None and value < low:
                raise UsageError(f"{name} must be {low} or more, got {value}")
        for name in ("min_tps", "max_ttft_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be more than zero, got {value}")
        if self.needs:
            longest = max(self.needs, key=lambda need: need.n_ctx)
            if self.n_ctx is None:
                object.__setattr__(self, "n_ctx", longest.n_ctx)
            elif self.n_ctx < longest.n_ctx:
                raise UsageError(
                    f"a context of {self.n_ctx} does not hold the requests of {longest.task}, which"
                    f" take up to {longest.n_ctx} tokens",
                    next_step=f"--ctx {longest.n_ctx}, or leave --ctx out",
                )

    @property
    def has_deadline(self) -> bool:
        """Whether a speed is demanded, so that a plan must keep it."""
        return self.min_tps is not None or self.max_ttft_s is not None or bool(self.needs)


def make_needs(
    workload: str | None, within_s: float | None, first_within_s: float | None
) -> tuple[Need, ...]:
    """Make the need of each of a workload's tasks; none without a workload. Without a time, each
    task has its own.

    Raises UsageError for an unknown workload, and for a time without one.
    """
    own = within_s is None and first_within_s is None
    if workload is None:
        if own:
            return ()
        raise UsageError(
            "a time is planned for with the requests that are to be answered in it",
            next_step="add --workload customer-service, or another one of `edge tasks`; a first "
            "token alone is --max-ttft",
        )
    return tuple(
        make_need(task, task.within_s, task.first_within_s)
        if own
        else make_need(task, within_s, first_within_s)
        for task in find_workload(workload)
    )


def make_need(task: Task, within_s: float | None, first_within_s: float | None) -> Need:
    """Make one task's need: nine in ten requests are no longer; the context holds all."""
    n_past = _tokens(task.system or "")
    frame = _TEMPLATE_TOKENS + _tokens(task.message)
    longest = n_past + frame + task.prompt.high + task.answer.high
    return Need(
        task=task.name,
        n_past=n_past,
        n_prompt=frame + task.prompt.quantile(SHARE),
        n_answer=task.answer.quantile(SHARE),
        n_ctx=-(-longest // _CONTEXT_STEP) * _CONTEXT_STEP,
        within_s=within_s,
        first_within_s=first_within_s,
    )


def describe_needs(needs: Sequence[Need]) -> str:
    """Name the tasks and their limits: `customer-service within 2.00 s`."""
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
