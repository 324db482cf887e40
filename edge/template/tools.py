"""The tools of one request: how a template lists them, how past calls and results are written, and
how calls are read from an answer. All of it is a client's data, and none of it is trusted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boardfit.edge.errors import UsageError
from boardfit.edge.template.thinking import find_controls
from boardfit.edge.template.tool_format import CallReader, ToolFormat, to_json
from boardfit.edge.template.tool_grammar import write_grammar
from boardfit.edge.types import AnswerFilter, Constraint, Message, TokenEvent, ToolCall

_EXAMPLE = ToolCall("NAME", '{"ARGUMENT": "VALUE"}')


@dataclass(frozen=True)
class Tool:
    """A function that a model may ask for. `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tool:
        """A tool in OpenAI's form, with or without `function` around it. Raises UsageError."""
        inner = data.get("function", data)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        description, parameters = inner.get("description"), inner.get("parameters")
        if not isinstance(name, str) or not isinstance(parameters or {}, Mapping):
            raise UsageError(f"a tool has a name, a description and parameters; got {data!r:.80}")
        return cls(name, str(description or ""), parameters or {})

    def to_dict(self) -> dict[str, Any]:
        function = {
            "name": self.name, "description": self.description, "parameters": self.parameters,
        }  # fmt: skip
        return {"type": "function", "function": function}


@dataclass(frozen=True, repr=False)
class ToolUse:
    """Tools on offer, and the format of the model's calls. `choice` is auto, none, required or the
    name of the tool to call. It is a `boardfit.edge.types.ToolShaper`.
    """

    form: ToolFormat
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    parallel: bool = True

    def __repr__(self) -> str:
        return f"ToolUse({self._digest})"

    @functools.cached_property
    def _digest(self) -> str:
        listed = [tool.to_dict() for tool in self.offered]
        text = json.dumps([self.form.to_dict(), listed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that the model is shown."""
        return () if self.choice == "none" else self.tools

    @property
    def must_call(self) -> bool:
        return bool(self.tools) and self.choice not in ("auto", "none")

    # ---- the prompt ---------------------------------------------------------------------------

    def list_tools(self, cut: Callable[[str], str]) -> Mapping[str, Any]:
        if not self.form.variable or not self.offered:
            return {}
        return {self.form.variable: [_cut_all(tool.to_dict(), cut) for tool in self.offered]}

    def shape(
        self, messages: Sequence[Message], cut: Callable[[str, bool], str]
    ) -> list[dict[str, Any]]:
        messages = list(messages) if self.form.parallel else split_calls(messages)
        shaped, ids, waiting = list[dict[str, Any]](), dict[str, str](), list[str]()
        names = dict[str, str]()
        for message in messages:
            if message.role == "tool":
                known = ids.get(message.call_id)
                shown = known or (waiting[0] if waiting else "call00000")
                waiting = [each for each in waiting if each != shown]
                shaped.append(self._shape_result(message, shown, names.get(shown, ""), cut))
            elif message.calls:
                waiting = [f"call{len(ids) + i:05}" for i in range(len(message.calls))]
                for call, shown in zip(message.calls, waiting, strict=True):
                    ids[call.id or shown], names[shown] = shown, call.name
                shaped.append(self._shape_calls(message, waiting, cut))
            else:
                content = cut(message.content, message.role == "assistant")
                shaped.append({"role": message.role, "content": content})
        return self._add_listing(shaped, cut)

    def _shape_calls(
        self, message: Message, ids: Sequence[str], cut: Callable[[str, bool], str]
    ) -> dict[str, Any]:
        content = cut(message.content, True)

        def cut_own(text: str) -> str:
            return cut(text, True)

        calls = [
            ToolCall(cut_own(call.name), to_json(_cut_all(call.values, cut_own)), shown)
            for call, shown in zip(message.calls, ids, strict=True)
        ]
        if not self.form.renders:
            return {"role": "assistant", "content": content + self.form.write(calls)}
        is_text = self.form.arguments == "text"
        found = [
            {"id": call.id, "type": "function", "function": {
                "name": call.name, "arguments": call.arguments if is_text else call.values}}
            for call in calls
        ]  # fmt: skip
        return {"role": "assistant", "content": content, "tool_calls": found}

    def _shape_result(
        self, message: Message, shown: str, name: str, cut: Callable[[str, bool], str]
    ) -> dict[str, Any]:
        content, name = cut(message.content, False), cut(name, False)
        if not self.form.results:
            return {"role": "user", "content": f"Result of {name or 'the call'}: {content}"}
        return {"role": "tool", "content": content, "tool_call_id": shown, "name": name}

    def _add_listing(
        self, shaped: list[dict[str, Any]], cut: Callable[[str, bool], str]
    ) -> list[dict[str, Any]]:
        """Name the tools in the system prompt, where the template does not list them."""
        if not self.form.results:
            shaped = join_neighbours(shaped)
        if self.form.variable or not self.offered:
            return shaped
        lines = [
            json.dumps(tool.to_dict()["function"], ensure_ascii=False) for tool in self.offered
        ]
        listing = (
            "You can call these functions. Each line is one, with the schema of its arguments:\n"
            f"{cut(chr(10).join(lines), False)}\n"
            f"To call one, answer with nothing but {self.form.write([_EXAMPLE])}"
        )
        if shaped and shaped[0]["role"] == "system":
            head = {"role": "system", "content": f"{shaped[0]['content']}\n\n{listing}"}
            return [head, *shaped[1:]]
        return [{"role": "system", "content": listing}, *shaped]

    # ---- the answer ---------------------------------------------------------------------------

    def constrain(self, control: Callable[[str], int | None]) -> Constraint | None:
        """What holds calls to the tools: from the first token where one must come, else from where
        one begins. None where nothing shows that one begins. `control` gives the id of a marker
        that is a token without a text. Raises UsageError for a schema that cannot be enforced.
        """
        form, wanted = self.form, self.offered
        if self.must_call and self.choice != "required":
            wanted = tuple(tool for tool in wanted if tool.name == self.choice)
        after = "" if self.must_call else form.trigger
        if form.is_bare and not self.must_call:
            after = f'{{"{form.name_key}":' if form.syntax == "json" and form.name_key else ""
        if not wanted or not (after or self.must_call):
            return None
        schemas = {tool.name: tool.parameters for tool in wanted}
        text = write_grammar(form, schemas, after=after, parallel=self.parallel, control=control)
        return Constraint("lark", text, after)

    def filter(
        self,
        inner: AnswerFilter,
        tokenize: Callable[[str], list[int]],
        has_text: Callable[[int], bool],
    ) -> AnswerFilter:
        """`inner`, and calls taken out of the text behind it."""
        if not self.offered:
            return inner
        form = self.form
        markers = [form.open, form.start, form.middle, form.end, form.gap, form.close, form.quote]
        schemas = {tool.name: tool.parameters for tool in self.offered}
        reader = CallReader(form, schemas, most=64 if self.parallel else 1)
        return ToolFilter(inner, reader, find_controls(markers, tokenize, has_text))


class ToolFilter(AnswerFilter):
    """Takes calls out of the text of an answer. `controls` are marker tokens that the engine gives
    no text for, by id. Calls among thoughts are thoughts.
    """

    def __init__(
        self, inner: AnswerFilter, reader: CallReader, controls: Mapping[int, str]
    ) -> None:
        self._inner, self.reader, self._controls = inner, reader, controls

    def __call__(self, event: TokenEvent) -> TokenEvent:
        token, reason = event.token_id, event.finish_reason
        event = self._inner(event)
        marker = "" if token is None else self._controls.get(token, "")
        if marker and (event.thought or self.find_closing() is not None):
            marker = ""
        text, calls = self.reader.feed(
            event.text + marker, ends=reason is not None, cut=reason not in (None, "stop")
        )
        return dataclasses.replace(event, text=text, calls=tuple(calls))

    @property
    def thoughts(self) -> tuple[str, str] | None:  # type: ignore[override]
        return self._inner.thoughts

    def find_closing(self) -> tuple[str, Sequence[int]] | None:
        return self._inner.find_closing()


def _cut_all(value: Any, cut: Callable[[str], str]) -> Any:
    """JSON data with `cut` over all its texts, keys too; nearly always there is nothing to cut."""
    joined = "\n".join(_texts(value))
    return value if cut(joined) == joined else _cut_each(value, cut)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _cut_each(value: Any, cut: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return cut(value)
    if isinstance(value, Mapping):
        return {cut(str(key)): _cut_each(item, cut) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut_each(item, cut) for item in value]
    return value


def split_calls(messages: Sequence[Message]) -> list[Message]:
    """Messages with one call each, its results behind it: some templates take no more."""
    found, rest = list[Message](), list(messages)
    while rest:
        message = rest.pop(0)
        if len(message.calls) < 2:
            found.append(message)
            continue
        results = list[Message]()
        while rest and rest[0].role == "tool":
            results.append(rest.pop(0))
        for i, call in enumerate(message.calls):
            found.append(Message("assistant", message.content if i == 0 else "", (call,)))
            of_call = [r for r in results if r.call_id and r.call_id == call.id]
            of_call = of_call or [r for r in results if not r.call_id][:1]
            found += of_call
            results = [r for r in results if r not in of_call]
        found += results
    return found


def join_neighbours(shaped: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of which no two of a user are neighbours: some templates refuse that."""
    found = list[dict[str, Any]]()
    for message in shaped:
        if found and message["role"] == found[-1]["role"] == "user":
            found[-1]["content"] += f"\n\n{message['content']}"
        else:
            found.append(dict(message))
    return found
