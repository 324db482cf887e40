"""Put a budget around an opened model: its time model from the store, the plan or a short trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from boardfit.edge.chat.timed_session import TimedSession
from boardfit.edge.deadline.budget import Budget, OnMiss
from boardfit.edge.deadline.store import TimeStore
from boardfit.edge.deadline.time_model import Prior, TimeModel
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.engines.target import OpenModel
from boardfit.edge.states import model_identity, states_of
from boardfit.edge.tasks.task import Task
from boardfit.edge.types import Engine, GenerationConfig, Plan

_F = TypeVar("_F", bound=Callable[..., Any])

# What is assumed before anything is known: a small board. The trial corrects it at once.
_UNKNOWN = Prior(prefill_tps=40.0, decode_tps=8.0, bound=1.0)
_TRIAL_TEXT = "The quick brown fox jumps over the lazy dog and runs on through the night. "
_TRIAL_PROMPT, _TRIAL_LONG, _TRIAL_TOKENS = 16, 96, 8
# A trial takes no longer than this, however slow the board is.
_TRIAL_S = 3.0

#: Tokens guessed ahead with a budget, where answers are greedy (boardfit.edge.engines.lookup).
_N_DRAFT = 8

_OPTIONS = (
    click.option("--within", help="Time limit for the whole answer, for example 2s or 500ms."),
    click.option("--first-within", help="Time limit for the first word of the answer."),
    click.option(
        "--on-miss",
        type=click.Choice(["refuse", "best"]),
        default="refuse",
        show_default=True,
        help="If no version of a question fits the time: refuse at once, or answer as far as "
        "possible.",
    ),
    click.option(
        "--tell/--no-tell",
        default=True,
        show_default=True,
        help="When time is short, ask the model for a short answer.",
    ),
)


def budget_options(command: _F) -> _F:
    """Add --within, --first-within, --on-miss and --tell to a click command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_budget(options: dict[str, Any]) -> Budget | None:
    """The budget that the options name, None if they name none. Takes its options out of the
    dictionary. Raises UsageError for anything that is not a time.
    """
    on_miss: OnMiss = options.pop("on_miss")
    tell = options.pop("tell")
    return Budget.parse(
        options.pop("within"), options.pop("first_within"), on_miss=on_miss, tell=tell
    )


def draft_tokens(budget: Budget | None, task: Task | None = None) -> int:
    """Tokens that an engine may guess from the prompt: none without a budget, nor for a task whose
    answers have words of their own.
    """
    return _N_DRAFT if budget is not None and (task is None or task.extractive) else 0


class TimedModel:
    """A session with budgets and the file that its time model is kept in."""

    def __init__(self, opened: OpenModel, *, system: str | None = None, raw: bool = False) -> None:
        """A short trial reads the weights from storage, so that the first question finds them in
        memory, and shows how fast the board is now.
        """
        self._store, times = timed(model_identity(opened), opened.engine, prior_of(opened))
        self._info = opened.engine.describe()
        self.session = TimedSession(
            opened.engine,
            times,
            system=system,
            states=None if raw else states_of(opened),
            raw=raw,
            cold=False,
        )
        self.session.small = self._open_small(opened)
        if not raw:
            self.session.render_check()  # brings the template engine, outside of any budget

    def _open_small(self, opened: OpenModel) -> TimedSession | None:
        """A session of the bundle's smaller model, opened beside the other one."""
        self._small: tuple[TimeStore, TimedSession] | None = None
        found = opened.bundle.small if opened.bundle is not None else None
        if found is None:
            return None
        model, plan = found
        engine = open_engine(plan.engine, model, EngineSettings.to_use(plan))
        store, times = timed(f"{model_identity(opened)} small", engine, prior_of_plan(plan))
        session = TimedSession(engine, times, cold=False)
        self._small = store, session
        return session

    def save(self) -> None:
        """Keep what was learned."""
        self._store.save(self.session.times, self._info)
        if self._small is not None:
            store, session = self._small
            store.save(session.times, session.engine.describe())


def timed(model_id: str, engine: Engine, prior: Prior) -> tuple[TimeStore, TimeModel]:
    """The store of an engine's time model, and the model after a short trial."""
    store = TimeStore(model_id, engine.describe())
    is_known = store.is_known
    times = store.load(prior)
    try_out(engine, times, is_known=is_known)
    return store, times


def prior_of(opened: OpenModel) -> Prior:
    """What the plan predicted, where there is one with times."""
    return prior_of_plan(opened.plan)


def prior_of_plan(plan: Plan | None) -> Prior:
    if plan is None or plan.decode_tps is None or plan.prefill_tps is None:
        return _UNKNOWN
    bound = max(plan.error_bound or 0.0, 0.3)
    return Prior(plan.prefill_tps, plan.decode_tps, bound=bound)


def try_out(engine: Engine, times: TimeModel, *, is_known: bool = False) -> None:
    """Teach `times` with a short and a longer prefill and a few tokens, for a few seconds at most;
    the short one alone where the board `is_known`. The first of them is cold and not counted.
    """
    text = _TRIAL_TEXT * 12
    tokens = engine.tokenize(text)
    config = GenerationConfig(max_tokens=_TRIAL_TOKENS, ignore_eos=True)
    end_s = time.monotonic() + _TRIAL_S
    lengths = [_TRIAL_PROMPT, _TRIAL_PROMPT, min(_TRIAL_LONG, engine.n_ctx // 4)]
    for i, n in enumerate(lengths[:2] if is_known else lengths):
        engine.reset()
        times.use_threads(engine.threads_now)
        began_ns = time.monotonic_ns()
        events = list(engine.stream(tokens[:n], config, lambda: time.monotonic() > end_s))
        start = engine.last_start
        times_ns = [event.t_ns for event in events if event.token_id is not None]
        if start is None or not times_ns:
            break
        seconds = (start.t_prefill_end_ns - began_ns) / 1e9
        times.observe_prefill(n, 0, seconds, cold=i == 0)
        if i and len(times_ns) > 1:
            times.observe_decode(len(times_ns) - 1, n, (times_ns[-1] - times_ns[0]) / 1e9)
    engine.reset()
