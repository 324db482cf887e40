"""The one request that every wire becomes, and what the wires read alike."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from boardfit.edge.deadline.budget import Budget, OnMiss
from boardfit.edge.errors import EngineMissingError, UsageError
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.refused import RequestRefused, bad_field, unsupported
from boardfit.edge.template.tools import Tool
from boardfit.edge.types import Constraint, GenerationConfig, Message, TemplateChoice, ToolCall

Rank = Literal["interactive", "normal", "background"]
MAX_MESSAGES, MAX_STOPS, MAX_STOP_CHARS = 1000, 16, 256
MAX_TOOLS, MAX_SCHEMA_DEPTH, MAX_SCHEMA_VALUES = 128, 32, 4096
_TOOL_NAME = re.compile(r"[\w.:/-]{1,128}")
_MAX_TOKENS = 1 << 24
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})")


@dataclass(frozen=True)
class Ask:
    """What a client wants. `messages` end with the user's or a tool's; plain text has none, but a
    `prompt`. `notes` are what was read otherwise than it was written.
    """

    config: GenerationConfig
    stream: bool
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    budget: Budget | None = None
    rank: Rank = "normal"
    choice: TemplateChoice | None = None
    include_usage: bool = False
    prompt_ids: tuple[int, ...] = ()  # a plain text that came as tokens
    echo: bool = False  # the answer begins with the prompt
    logprobs: int | None = None  # how many likely tokens in each place; None: no scores
    notes: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"  # auto, none, required, or the name of a tool
    parallel: bool = True  # several calls in one answer

    @property
    def uses_tools(self) -> bool:
        """Whether tools are offered, or calls and results are among the messages."""
        past = any(message.calls or message.role == "tool" for message in self.messages)
        return past or bool(self.tools)

    @property
    def system(self) -> str | None:
        first = self.messages[:1]
        return first[0].content if first and first[0].role == "system" else None

    @property
    def history(self) -> list[Message]:
        """The messages between the system prompt and the question."""
        return [message for message in self.messages[:-1] if message.role != "system"]

    @property
    def question(self) -> Message:
        return self.messages[-1] if self.messages else Message("user", self.prompt)


@dataclass(frozen=True)
class Defaults:
    """What holds where a request does not say otherwise, from the command line."""

    config: GenerationConfig = field(default_factory=GenerationConfig)
    budget: Budget | None = None


@dataclass(frozen=True)
class Carried:
    """Limits that came beside the body: in the path, the headers or the model's name."""

    within: str | None = None
    first_within: str | None = None
    on_miss: str | None = None
    rank: str | None = None


def read_headers(headers: Mapping[str, str]) -> Carried:
    """The limits in a request's headers: ours, then RFC 7240's `Prefer: wait=10`."""
    wait = _WAIT.search(headers.get("prefer", ""))
    return Carried(
        headers.get("x-edge-within") or (f"{wait[1]}s" if wait else None),
        headers.get("x-edge-first-within"),
        headers.get("x-edge-on-miss"),
        headers.get("x-edge-class"),
    )


def split_model(name: str) -> tuple[str, str | None]:
    """A model's name, and the time in `name@2s`."""
    plain, at, time = name.rpartition("@")
    return (plain, time) if at and time[:1].isdigit() else (name, None)


def read_budget(body: RequestFields, carried: Carried, default: Budget | None) -> Budget | None:
    """The budget of a request: its body's, else what came beside it, else the default."""
    values: list[str | None] = []
    for key, beside in (("within", carried.within), ("first_within", carried.first_within)):
        value = body.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"{value:f}"
        if value is not None and not isinstance(value, str):
            raise bad_field(body.name(key), 'a time such as "2s"', value)
        values.append(value or beside)
    given = RequestFields({"on_miss": body.get("on_miss") or carried.on_miss})
    on_miss = given.choice("on_miss", ("refuse", "best"), "refuse")
    if values == [None, None]:
        return default
    try:
        return Budget.parse(*values, on_miss=cast(OnMiss, on_miss))
    except UsageError as error:
        raise RequestRefused(400, str(error).replace("--", "").replace("-", "_", 1)) from None


def read_rank(body: RequestFields, carried: Carried) -> Rank:
    ranks = ("interactive", "normal", "background")
    return cast(
        Rank,
        RequestFields({"class": body.get("class") or carried.rank}).choice(
            "class", ranks, "normal"
        ),
    )


def read_config(
    body: RequestFields, default: GenerationConfig, *, max_tokens: int
) -> GenerationConfig:
    """How tokens are chosen, by OpenAI's names and llama.cpp's. Raises RequestRefused."""
    stops = body.texts("stop", most=MAX_STOPS, longest=MAX_STOP_CHARS)
    seed = body.whole("seed", -(2**63), 2**63 - 1, default.seed)
    return GenerationConfig(
        max_tokens=max_tokens,
        temperature=body.number("temperature", 0.0, 10.0, default.temperature),
        top_k=body.whole("top_k", -1, 1 << 20, default.top_k),
        top_p=body.number("top_p", 0.0, 1.0, default.top_p),
        min_p=body.number("min_p", 0.0, 1.0, default.min_p),
        repeat_penalty=body.number("repeat_penalty", 0.1, 10.0, default.repeat_penalty),
        seed=-1 if seed == -1 else seed % 2**31,
        stop=stops or default.stop,
    )


def read_ask(
    body: RequestFields,
    carried: Carried,
    defaults: Defaults,
    *,
    max_tokens: int,
    form: Constraint | None = None,
    **rest: Any,
) -> Ask:
    """What OpenAI's wires have alike: sampling, streaming, time, rank; `rest` is a wire's own."""
    is_scored = rest.get("logprobs") is not None
    budget = read_budget(body, carried, None if is_scored else defaults.budget)
    if is_scored and budget is not None:
        raise unsupported("logprobs", "they are computed after the answer; ask without a time")
    return Ask(
        replace(read_config(body, defaults.config, max_tokens=max_tokens), constraint=form),
        body.flag("stream", False),
        budget=budget,
        rank=read_rank(body, carried),
        **rest,
    )


def read_form(form: RequestFields, *, schema: RequestFields | None = None) -> Constraint | None:
    """What an answer must be: OpenAI's `response_format`, or the Responses' `text.format`, in which
    the `schema` stands elsewhere. Raises RequestRefused for what cannot be enforced.
    """
    kind = form.choice("type", ("text", "json_object", "json_schema"), "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return make_form({"type": "object"}, form.name("type"))
    table = form.table("json_schema") if schema is None else schema
    return make_form(dict(table.table("schema").fields), table.name("schema"))


def make_form(schema: Any, param: str) -> Constraint:
    """A JSON schema as a constraint. Raises RequestRefused for one that cannot be enforced."""
    from boardfit.edge.engines.constraint import check_constraint

    constraint = Constraint("json_schema", json.dumps(schema))
    try:
        check_constraint(constraint)
    except EngineMissingError as error:
        raise RequestRefused(501, f"{param}: {error}; {error.next_step}", param=param) from None
    except UsageError as error:
        raise RequestRefused(400, f"{param}: {error}", param=param) from None
    return constraint


def read_max_tokens(body: RequestFields, *keys: str, default: int) -> int:
    """The least of the given limits. Raises RequestRefused for 0 and for less than -1."""
    found = [body.whole(key, -1, _MAX_TOKENS, default) for key in keys if body.get(key) is not None]
    for key in keys:
        if body.get(key) == 0:
            raise RequestRefused(400, f"{body.name(key)}: expected 1 or more", param=body.name(key))
    limits = [n for n in found if n > 0]
    return min(limits) if limits else (-1 if found else default)


def read_choice(thinks: object, variables: Mapping[str, Any], param: str) -> TemplateChoice | None:
    """How the template is rendered, from a switch (None, a flag, or an effort) and variables."""
    rest = {k: v for k, v in variables.items() if k != "enable_thinking"}
    if thinks is None:
        thinks = variables.get("enable_thinking")
    if thinks is None:
        return TemplateChoice("auto", rest) if rest else None
    if not isinstance(thinks, (bool, str)):
        raise bad_field(param, "true, false or an effort", thinks)
    is_on = thinks if isinstance(thinks, bool) else thinks not in ("none", "off", "false", "")
    return TemplateChoice("on" if is_on else "off", rest)


def read_tools(body: RequestFields) -> dict[str, Any]:
    """The tools that a client offers, and whether one must be called, as fields of an Ask.

    Tools of other types than functions are left out. Raises RequestRefused for names or schemas
    that cannot be shown to a model, and for a choice that names no tool.
    """
    tools = list[Tool]()
    for each in body.tables("tools", most=MAX_TOOLS):
        if each.text("type", "function") != "function":
            continue  # clients offer what only their own provider has
        function = each.table("function") if each.get("function") is not None else each
        name, parameters = function.text("name"), function.table("parameters")
        if not _TOOL_NAME.fullmatch(name) or name in [tool.name for tool in tools]:
            expected = "a name of its own, of letters, digits, _ . : / and -, 128 at most"
            raise bad_field(function.name("name"), expected, name)
        if not is_bounded(parameters.fields):
            problem = (
                f"nested more than {MAX_SCHEMA_DEPTH} deep, or more than {MAX_SCHEMA_VALUES} values"
            )
            raise RequestRefused(400, f"{function.name('parameters')}: {problem}", param="tools")
        tools.append(Tool(name, function.text("description"), dict(parameters.fields)))
    choice = _read_tool_choice(body, [tool.name for tool in tools])
    parallel = body.flag("parallel_tool_calls", True)
    return {"tools": tuple(tools), "tool_choice": choice, "parallel": parallel}


def _read_tool_choice(body: RequestFields, names: Sequence[str]) -> str:
    value = body.get("tool_choice")
    if isinstance(value, dict):
        choice = body.table("tool_choice")
        function = choice.table("function") if choice.get("function") is not None else choice
        value = function.text("name")
        if choice.text("type", "function") != "function" or value not in names:
            raise bad_field(choice.name("name"), f"one of {', '.join(names) or 'no tools'}", value)
        return str(value)
    value = body.choice("tool_choice", ("auto", "none", "required"), "auto")
    if value == "required" and not names:
        raise RequestRefused(400, "tool_choice: required needs tools", param="tool_choice")
    return value


def is_bounded(value: Any) -> bool:
    """Whether JSON data nests no deeper, and holds no more values, than is read here."""
    level, n_values = [value], 0
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        n_values += len(level)
        if not level or n_values > MAX_SCHEMA_VALUES:
            break
    return not level


def read_messages(bodies: list[RequestFields]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Messages as every template takes them, and notes on what was changed for that.

    One system prompt at the head; neighbours of one role are joined. Raises RequestRefused for what
    cannot be read so: pictures, a conversation that ends neither with the user nor with a result.
    """
    system, found, notes = list[str](), list[Message](), list[str]()
    for i, body in enumerate(bodies):
        role, text = body.text("role"), read_content(body)
        if role in ("system", "developer"):
            if found:
                notes.append("a system message in the middle was moved to the head")
            system.append(text)
        elif role in ("user", "assistant"):
            calls = tuple(map(_read_call, body.tables("tool_calls", most=MAX_TOOLS)))
            if not text and not calls and role == "assistant":
                continue
            message = Message(role, text, calls)  # type: ignore[arg-type]
            if found and found[-1].role == role:
                if not (calls or found[-1].calls):
                    notes.append(f"neighbouring messages of the {role} were joined")
                message = _join(found.pop(), message)
            found.append(message)
        elif role in ("tool", "function"):
            found.append(Message("tool", text, call_id=body.text("tool_call_id")))
        else:
            expected = "system, developer, user, assistant or tool"
            raise RequestRefused(
                400, f"messages[{i}].role: expected {expected}", param=f"messages[{i}].role"
            )
    is_asked = found and (found[-1].role == "tool" or found[-1].content.strip())
    if not is_asked or found[-1].role == "assistant":
        raise RequestRefused(
            400, "messages: the last one must be the user's, and hold text", param="messages"
        )
    text = "\n\n".join(part for part in system if part)
    head = [Message("system", text)] if text else []
    return (*head, *found), tuple(dict.fromkeys(notes))


def _join(first: Message, second: Message) -> Message:
    content = "\n\n".join(part for part in (first.content, second.content) if part)
    return Message(first.role, content, first.calls + second.calls)


def _read_call(body: RequestFields) -> ToolCall:
    """A call that an earlier answer asked for: its arguments are a text, or an object."""
    function = body.table("function")
    name, arguments = function.text("name"), function.get("arguments")
    if not _TOOL_NAME.fullmatch(name):
        raise bad_field(function.name("name"), "the name of a tool", name)
    try:
        values = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments or {}
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not is_bounded(values):
        raise bad_field(function.name("arguments"), "a JSON object", arguments)
    return ToolCall(name, json.dumps(values, ensure_ascii=False), body.text("id"))


def read_content(body: RequestFields, key: str = "content") -> str:
    """A message's text: a text, null, or an array of parts that are all text."""
    value = body.get(key)
    if value is None or isinstance(value, str):
        return body.text(key)
    parts = []
    for part in body.tables(key, most=MAX_MESSAGES):
        if part.text("type", "text") not in ("text", "input_text", "output_text"):
            raise unsupported(part.name("type"), "only text can be read, no pictures or sound")
        parts.append(part.text("text"))
    return "\n".join(parts)
