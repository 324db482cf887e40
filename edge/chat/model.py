"""An open model to talk to from Python: one conversation, and a budget of seconds where asked.

with open_chat("out/pi5", system="You are brief.") as model:
    for event in model.chat("How warm is the board?", within_s=2):
        print(event.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from boardfit.edge.chat.session import Answer, Session, summarize
from boardfit.edge.chat.timed_open import TimedModel
from boardfit.edge.deadline import Budget, Outcome
from boardfit.edge.engines.target import OpenModel, open_model
from boardfit.edge.process.live import watched
from boardfit.edge.states import states_of
from boardfit.edge.types import EngineInfo, GenerationConfig, Plan, TokenEvent, Trace


class Reply(Iterator[TokenEvent]):
    """One answer, token by token as the model makes it. `text` waits for all of it."""

    def __init__(self, events: Iterator[TokenEvent]) -> None:
        self._events = events
        self._parts: list[str] = []

    def __next__(self) -> TokenEvent:
        event = next(self._events)
        self._parts.append(event.text)
        return event

    @property
    def text(self) -> str:
        for _ in self:
            pass
        return "".join(self._parts)


class Model:
    """A model that `boardfit.open` has opened. Close it, or use it in a `with` block.

    Not for two threads at once. One answer at a time: read a reply to its end before the next call.
    """

    def __init__(self, opened: OpenModel, system: str | None = None) -> None:
        self._opened = opened
        self._session = Session(opened.engine, system=system, states=states_of(opened))
        self._timed: TimedModel | None = None
        self.last_answer: Answer | None = None  # text, tokens, seconds and speed of the last reply
        self.last_outcome: Outcome | None = None  # how its budget was kept; None without a budget

    @property
    def name(self) -> str:
        return self._opened.name

    @property
    def plan(self) -> Plan | None:
        """What the bundle was planned for; None for a plain model file."""
        return self._opened.plan

    @property
    def info(self) -> EngineInfo:
        """The engine: name, version, threads, context, quantization."""
        return self._opened.engine.describe()

    def chat(
        self,
        text: str,
        *,
        within_s: float | None = None,
        first_within_s: float | None = None,
        config: GenerationConfig | None = None,
    ) -> Reply:
        """Answer `text` in the conversation so far, which then holds both.

        With `within_s` the whole answer takes no longer than that; with `first_within_s` its first
        word. The first call with a budget measures the board before, for three seconds at most.

        Raises DeadlineError when no version of the question can be answered in time, InputError
        when the model has no chat template or the question fills the context.
        """
        if within_s is None and first_within_s is None:
            return Reply(self._answer(self._session.ask(text, config), None))
        budget = Budget(within_s, first_within_s)
        timed = self._with_budgets()
        return Reply(self._answer(timed.session.ask_within(text, budget, config), timed))

    def stream(self, prompt: str, *, config: GenerationConfig | None = None) -> Reply:
        """Continue `prompt` as plain text: no chat template, and no part of the conversation."""
        return Reply(self._continue(prompt, config or GenerationConfig()))

    def reset(self) -> None:
        """Forget the conversation. The system prompt stays."""
        self._session.reset()

    def close(self) -> None:
        """Keep what was learned about time, and give the memory back."""
        if self._timed is not None:
            self._timed.save()
        self._opened.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(
        self, events: Iterator[TokenEvent], timed: TimedModel | None
    ) -> Iterator[TokenEvent]:
        self.last_answer = self.last_outcome = None
        yield from events
        self.last_answer = self._session.last_answer
        self.last_outcome = timed.session.last_outcome if timed else None

    def _continue(self, prompt: str, config: GenerationConfig) -> Iterator[TokenEvent]:
        engine, request_ns = self._opened.engine, time.monotonic_ns()
        self.last_answer = self.last_outcome = None
        tokens, events = engine.prompt(prompt), list[TokenEvent]()
        for event in watched(engine.stream(tokens, config), len(tokens)):
            events.append(event)
            yield event
        start = engine.last_start
        self.last_answer = summarize(Trace.of_stream(request_ns, tokens, events, start), start)

    def _with_budgets(self) -> TimedModel:
        """The session that keeps budgets. It goes on with the conversation so far."""
        if self._timed is None:
            self._timed = TimedModel(self._opened, system=self._session.system)
            self._timed.session.messages = self._session.messages
            self._session = self._timed.session
        return self._timed


def open_chat(
    path: str | Path,
    *,
    system: str | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    kv_type: str | None = None,
) -> Model:
    """Open a bundle (or a model file) for chat. Settings come from its plan unless they are given.

    Raises InputError or IntegrityError for what cannot be trusted, EngineMissingError without the
    engine's package, DoesNotFitError when memory is too short.
    """
    opened = open_model(path, n_ctx=n_ctx, n_threads=n_threads, kv_type=kv_type)
    return Model(opened, system)
