"""An open model to talk to from Python: one conversation, and a budget of seconds where asked.

with open_chat("out/pi5", system="You are brief.") as model:
    for event in model.chat("How warm is the board?", within_s=2):
        print(event.text, end="", flush=True)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from boardfit.edge.chat.session import Answer, Session
from boardfit.edge.chat.timed_open import add_deadline, open_session
from boardfit.edge.engines.settings import CHAT_MARKS
from boardfit.edge.engines.target import OpenModel, open_model
from boardfit.edge.types import (
    Constraint,
    EngineInfo,
    GenerationConfig,
    Message,
    Plan,
    Thinking,
    TokenEvent,
    ToolCall,
)

if TYPE_CHECKING:  # a chat without a budget never imports it
    from boardfit.edge.deadline.budget import Budget
    from boardfit.edge.deadline.outcome import Outcome


class Reply(Iterator[TokenEvent]):
    """One answer, token by token as the model makes it. `text` and `calls` wait for all of it."""

    def __init__(self, events: Iterator[TokenEvent]) -> None:
        self._events = events
        self._parts: list[str] = []
        self._calls: list[ToolCall] = []

    def __next__(self) -> TokenEvent:
        event = next(self._events)
        self._parts.append(event.text)
        self._calls += event.calls
        return event

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of tools that the model asks for."""
        for _ in self:
            pass
        return self._calls

    @property
    def text(self) -> str:
        for _ in self:
            pass
        return "".join(self._parts)


class Model:
    """A model that `boardfit.open` has opened. Close it, or use it in a `with` block. Not for two
    threads at once: read a reply to its end before the next call.
    """

    def __init__(self, opened: OpenModel, system: str | None = None) -> None:
        self._opened = opened
        self._session = open_session(opened, system=system)
        self._has_tools = False
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
        text: str | Message | Sequence[Message],
        *,
        within_s: float | None = None,
        first_within_s: float | None = None,
        config: GenerationConfig | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str = "auto",
        schema: Mapping[str, Any] | None = None,
        choice: Sequence[str] | None = None,
    ) -> Reply:
        """Answer `text` in the conversation so far, which then holds both.

        `tools` are functions that the model may ask for, in OpenAI's form; `calls` of the reply are
        what it asks for. Their results go back as messages: `Message("tool", "21 °C",
        call_id=call.id)`. `tool_choice` is auto, none, required or the name of one tool.

        With a JSON `schema` the answer is JSON that fits it, with `choice` it is one of these
        texts; a schema that cannot be enforced raises UsageError.

        With `within_s` the whole answer takes no longer than that; with `first_within_s` its first
        word. The first call with a budget measures the board before, for three seconds at most.

        Raises DeadlineError when no version of the question can be answered in time, InputError
        when the model has no chat template or the question fills the context.
        """
        if tools is not None or self._has_tools:
            self._offer(tools or (), tool_choice)
        if schema is not None or choice is not None:
            kind: Literal["json_schema", "choice"] = "choice" if schema is None else "json_schema"
            form = Constraint(kind, json.dumps(list(choice or ()) if schema is None else schema))
            config = dataclasses.replace(config or GenerationConfig(), constraint=form)
        if within_s is None and first_within_s is None:
            return self._reply(self._session, text, config)
        from boardfit.edge.deadline.budget import Budget

        budget = Budget(within_s, first_within_s)
        if self._session.deadline is None:
            add_deadline(self._session, self._opened)
        return self._reply(self._session, text, config, budget)

    def _offer(self, tools: Sequence[Mapping[str, Any]], choice: str) -> None:
        from boardfit.edge.template.tools import Tool, ToolUse

        self._has_tools = True  # calls of the past are written as the model writes them, from now
        offered = tuple(map(Tool.from_dict, tools))
        self._session.offer(ToolUse(self._opened.tool_format, offered, choice))

    def stream(self, prompt: str, *, config: GenerationConfig | None = None) -> Reply:
        """Continue `prompt` as plain text: no chat template, and no part of the conversation."""
        return self._reply(Session(self._opened.engine, raw=True), prompt, config)

    def reset(self) -> None:
        """Forget the conversation. The system prompt stays."""
        self._session.reset()

    def close(self) -> None:
        """Keep what was learned about time, and give the memory back."""
        self._session.save_times()
        self._opened.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reply(
        self,
        session: Session,
        text: str | Message | Sequence[Message],
        config: GenerationConfig | None,
        budget: Budget | None = None,
    ) -> Reply:
        def stream() -> Iterator[TokenEvent]:
            self.last_answer = self.last_outcome = None
            yield from session.ask(text, config, budget=budget)
            self.last_answer, self.last_outcome = session.last_answer, session.last_outcome

        return Reply(stream())


def open_chat(
    path: str | Path,
    *,
    system: str | None = None,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    kv_type: str | None = None,
    thinking: Thinking | None = None,
    template_variables: Mapping[str, Any] | None = None,
) -> Model:
    """Open a bundle (or a model file) for chat. Settings come from its plan unless they are given.

    Raises InputError or IntegrityError for what cannot be trusted, EngineMissingError without the
    engine's package, DoesNotFitError when memory is too short.
    """
    opened = open_model(
        path,
        n_marks=CHAT_MARKS,
        n_ctx=n_ctx,
        n_threads=n_threads,
        kv_type=kv_type,
        thinking=thinking,
        template_variables=template_variables,
    )
    return Model(opened, system)
