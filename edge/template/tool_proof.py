"""Find how a model writes calls of tools, by its own chat template.

Known calls are rendered through the template, with and without them. The difference holds what the
family writes around a name and its arguments. The format found so must read other calls back,
equal, one and two at a time. Where a template proves nothing, transformers' `response_template`
speaks, then the table of families.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import EdgeError, InputError
from boardfit.edge.template.render import render
from boardfit.edge.template.thinking import find_kinds
from boardfit.edge.template.tool_format import (
    CallReader,
    ToolFormat,
    read_calls,
    read_value,
    to_json,
)
from boardfit.edge.types import ToolCall

_TABLE = ("boardfit.edge.template", "tool_families.toml")
_WORD, _ANSWER, _RESULT = "about7361", "⁂answer7362", "result7363"
#: What a template or its model writes when a turn is over.
_TURN_END = re.compile(
    r"\s*(?:<\|(?:eom_id|eot_id|im_end|end|call|calls|endoftext|tool_response)\|?>|</s>|<eos>"
    r"|<｜end▁of▁sentence｜>\S*|<SPECIAL_\d+>)\s*$"
)
_PARAMETERS = {
    "type": "object",
    "properties": {
        "room": {"type": "string", "description": "the room"},
        "level": {"type": "integer", "description": "the level"},
        "names": {"type": "array", "items": {"type": "string"}, "description": "the names"},
        "warm": {"type": "boolean", "description": "whether warm"},
    },
    "required": [],
}
_NAMES = ("set_lamp7364", "open_door7365")
_TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": _WORD, "parameters": _PARAMETERS},
    }
    for name in _NAMES
]
_SCHEMAS = dict.fromkeys(_NAMES, _PARAMETERS)
_IDS = ("a1b2c3d4e", "f5g6h7j8k")


def _call(i: int, **values: Any) -> ToolCall:
    return ToolCall(_NAMES[i], to_json(values), _IDS[i])


_KNOWN = _call(0, room="garden", level=7366)
_TRIALS = (
    (_KNOWN,),
    (_call(1, room='the "old" hall é, [1] {2}: <b>', warm=True, names=["a, b", "c"]),),
    (_call(1, level=-3),),
)
_TWO = (_KNOWN, _call(1, room="cellar", level=7367))

Write = Callable[..., str]


class _Span(NamedTuple):
    """A call within a text: from its name or brace to the end of its arguments."""

    form: ToolFormat
    start: int
    end: int


def find_tool_format(source: str, response_template: Mapping[str, Any] | None = None) -> ToolFormat:
    """How the model of a chat template writes calls, and how that is known: `proof` is "generic"
    where it is not. Raises what rendering raises where jinja2 is missing.
    """

    def write(messages: Sequence[Mapping[str, Any]], variable: str = "tools") -> str:
        given: dict[str, Any] = {"tools": None, variable: _TOOLS}
        return render(
            source,
            messages,
            bos_token="<s>",
            eos_token="</s>",
            add_generation_prompt=False,
            **given,
        )

    form = _prove(source, write)
    if form is None:
        form = read_response_template(response_template) or _look_up(source)
        form = replace(form, variable=_find_variable(write, form))
    return replace(form, results=_has_results(write, form))


def _prove(source: str, write: Write) -> ToolFormat | None:
    for kind in ("object", "text"):
        try:
            wire = _cut(write, (_KNOWN,), kind)
            span = _find_call(wire, _KNOWN, _without_arguments(write, kind))
            if span is None:
                continue
            form = _split_markers(source, write, kind, wire, span)
            form = replace(form, renders=True, variable=_find_variable(write, form))
            if _holds(write, form):
                return form
        except (InputError, ValueError):
            continue
    return None


def _message(calls: Sequence[ToolCall], kind: str) -> dict[str, Any]:
    found = [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call.values if kind == "object" else call.arguments,
            },
        }
        for call in calls
    ]
    return {"role": "assistant", "content": "", "tool_calls": found}


def _cut(write: Write, calls: Sequence[ToolCall], kind: str) -> str:
    """What a template writes for calls, and does not write for an answer."""
    user = {"role": "user", "content": "Question"}
    text = write([user, _message(calls, kind)])
    plain = write([user, {"role": "assistant", "content": _ANSWER}])
    start = len(os.path.commonprefix([text, plain]))
    if text.rfind("<", 0, start) > text.rfind(">", 0, start):  # within a marker
        start = text.rfind("<", 0, start)
    rest, plain = text[start:], plain[start:]
    n_alike = len(os.path.commonprefix([rest[::-1], plain[::-1]]))
    end = len(rest) - n_alike
    if rest.rfind("<", 0, end) > rest.rfind(">", 0, end) and ">" in rest[end:]:
        end = rest.index(">", end) + 1
    wire = rest[:end]
    while (shorter := _TURN_END.sub("", wire)) != wire:
        wire = shorter
    return wire


def _without_arguments(write: Write, kind: str) -> str:
    try:
        return _cut(write, (_call(0),), kind)
    except InputError:
        return ""


def _find_call(wire: str, call: ToolCall, empty: str = "") -> _Span | None:
    """The call in a text, by the first syntax that fits. `empty` is it without arguments."""
    finders: Sequence[Callable[[], _Span | None]] = (
        lambda: _find_json(wire, call),
        lambda: _find_named(wire, call),
        lambda: _find_tagged(wire, call, empty),
    )
    for find in finders:
        try:
            if (span := find()) is not None:
                return span
        except ValueError:
            continue
    return None


def _braces(text: str) -> list[tuple[int, int, dict[str, Any]]]:
    """The JSON objects in a text, and where they are."""
    found, at, decoder = list[tuple[int, int, dict[str, Any]]](), 0, json.JSONDecoder()
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        found.append((at, end, value))
        at = end
    return found


def _find_json(wire: str, call: ToolCall) -> _Span | None:
    for start, end, value in _braces(wire):
        if value == {call.name: call.values}:
            return _Span(ToolFormat("json", "template", name_key=""), start, end)
        keys = {str(each): key for key, each in value.items()}
        name, arguments = keys.get(call.name), keys.get(str(call.values))
        if name and arguments:
            form = ToolFormat("json", "template", name_key=name, arguments_key=arguments)
            return _Span(form, start, end)
    return None


def _find_named(wire: str, call: ToolCall) -> _Span | None:
    """A name, and its arguments as JSON, as Python's keywords, or in braces without quotes."""
    for start, end, value in _braces(wire):
        at = wire.rfind(call.name, 0, start)
        if value == call.values and at >= 0:
            middle = wire[at + len(call.name) : start]
            return _Span(ToolFormat("args", "template", middle=middle), at, end)
    at = wire.find(call.name)
    behind = at + len(call.name)
    if wire.startswith("(", behind):
        form = ToolFormat("pythonic", "template")
        [found], end = read_calls(form, wire[at:], _SCHEMAS)
        return _Span(form, at, at + end) if found.values == call.values else None
    if at >= 0 and wire.startswith("{", behind):
        quoted = re.search(r"room:(.*?)garden" if "garden" in wire else r"room:(.*?)cellar", wire)
        quote = quoted[1] if quoted else ""
        value, end = read_value(wire, behind, quote)
        form = ToolFormat("braced", "template", quote=quote)
        return _Span(form, at, end) if value == call.values else None
    return None


def _find_tagged(wire: str, call: ToolCall, empty: str) -> _Span | None:
    """A name, then each argument between markers of its own."""
    (first, text), (second, number) = call.values.items()
    places, at = list[int](), 0
    for word in (first, text, second, str(number)):
        at = wire.index(word, at)
        places.append(at)
        at += len(word)
    name = wire.rfind(call.name, 0, places[0])
    if name < 0:
        return None
    head = wire[name + len(call.name) : places[0]]
    key_end = wire[places[0] + len(first) : places[1]]
    between = wire[places[1] + len(text) : places[2]]
    tail = wire[at:]
    if wire[places[2] + len(second) : places[3]] != key_end:
        return None
    alike = os.path.commonprefix([head[::-1], between[::-1]])[::-1]
    key = alike[alike.find("<") :] if "<" in alike else ""
    value_end = between[: len(between) - len(key)]
    if not key or not value_end.strip() or not tail.startswith(value_end.rstrip()):
        return None
    if not tail.startswith(value_end):
        value_end = value_end.rstrip()
    form = ToolFormat(
        "tagged", "template", middle=head[: len(head) - len(key)],
        key=key, key_end=key_end, value_end=value_end,
    )  # fmt: skip
    return _Span(form, name, at + len(value_end))


def _split_markers(source: str, write: Write, kind: str, wire: str, span: _Span) -> ToolFormat:
    """The markers around a call, and those around several."""
    before, after = wire[: span.start].lstrip(), wire[span.end :].rstrip()
    for kind_of_thoughts in find_kinds(source):  # a template may write that there were none
        for marker in (kind_of_thoughts.start, *kind_of_thoughts.ends):
            before = before.rpartition(marker)[2].lstrip()
    form = replace(span.form, arguments="object" if kind == "object" else "text")
    try:
        two = _cut(write, _TWO, kind)
        first = _find_call(two, _TWO[0])
        second = first and _find_call(two[first.end :], _TWO[1])
    except InputError:
        first = second = None
    if first is None or second is None:
        return replace(form, start=before, end=after, parallel=False)
    between = two[first.end : first.end + second.start]
    start = _snap_start(before, os.path.commonprefix([before[::-1], between[::-1]])[::-1])
    end = os.path.commonprefix([after, between[: len(between) - len(start)]])
    if end.rfind("<") > end.rfind(">"):
        end = end[: end.rfind("<")]
    gap = between[len(end) : len(between) - len(start)]
    return replace(
        form, open=before[: len(before) - len(start)], start=start, end=end, gap=gap,
        close=after[len(end) :],
    )  # fmt: skip


def _snap_start(before: str, start: str) -> str:
    """`start`, which ends `before`, from the beginning of a marker on."""
    rest = before[: len(before) - len(start)]
    if rest.rfind("<") <= rest.rfind(">"):
        return start
    at = start.find("<")
    return start[at:] if at >= 0 else ""


def _holds(write: Write, form: ToolFormat) -> bool:
    """Whether the format reads what the template writes, equal."""
    for calls in (*_TRIALS, *((_TWO,) if form.parallel else ())):
        wire = _cut(write, calls, form.arguments)
        shown, found = CallReader(form, _SCHEMAS).feed(wire, ends=True)
        if [(c.name, c.values) for c in found] != [(c.name, c.values) for c in calls]:
            return False
        if any(call.name in shown for call in calls):
            return False
    return True


def _find_variable(write: Write, form: ToolFormat) -> str:
    """The variable by which the template lists tools, with their descriptions; none where it does
    not, or where nothing is known of the calls that it asks for.
    """
    if form.proof == "generic":
        return ""
    for name in dict.fromkeys(filter(None, (form.variable, "tools"))):
        try:
            text = write([{"role": "user", "content": "Question"}], name)
        except EdgeError:
            continue
        if _WORD in text and all(each in text for each in _NAMES):
            return name
    return ""


def _has_results(write: Write, form: ToolFormat) -> bool:
    """Whether the template writes the result of a call, once."""
    asked = {"role": "assistant", "content": form.write([_KNOWN])}
    called = _message([_KNOWN], form.arguments) if form.renders else asked
    result = {
        "role": "tool", "content": _RESULT, "tool_call_id": _KNOWN.id, "name": _KNOWN.name,
    }  # fmt: skip
    try:
        return write([{"role": "user", "content": "Question"}, called, result]).count(_RESULT) == 1
    except EdgeError:
        return False


def _look_up(source: str) -> ToolFormat:
    """The row of the family that the template names; else the generic format."""
    table = load_toml(*_TABLE)
    for row in table["families"]:
        if row["hint"] in source:
            fields = {key: value for key, value in row.items() if key != "hint"}
            return ToolFormat.from_dict({**fields, "proof": "family table"})
    return ToolFormat.from_dict({**table["generic"], "proof": "generic"})


def read_response_template(spec: Mapping[str, Any] | None) -> ToolFormat | None:
    """The format in transformers' `response_template`; None where it has no calls, or says how they
    are written in a way that this reader does not know.
    """
    fields = spec.get("fields") if isinstance(spec, Mapping) else None
    field = fields.get("tool_calls") if isinstance(fields, Mapping) else None
    if not isinstance(field, Mapping) or field.get("content_args"):
        return None
    markers = [field.get("open"), field.get("close", "")]
    start, end = (each[0] if isinstance(each, list) and each else each for each in markers)
    syntax = {"json": "json", "python-call-list": "pythonic"}.get(str(field.get("content")))
    if syntax is None or not isinstance(start, str) or not isinstance(end, str) or not start:
        return None
    if syntax == "pythonic":
        found = {"open": f"{start}[", "gap": ", ", "close": f"]{end}"}
    else:
        found = {"start": start, "end": end, **_find_keys(field.get("transform"))}
    return ToolFormat.from_dict({"syntax": syntax, "proof": "response_template", **found})


def _find_keys(transform: Any) -> dict[str, str]:
    """The keys of the name and of the arguments, by the placeholders of a transform."""
    inner = transform.get("function", transform) if isinstance(transform, Mapping) else {}
    found = {}
    for key, field in (("name", "name_key"), ("arguments", "arguments_key")):
        match = re.fullmatch(r"\{(?:content\.)?(\w+)\}", str(inner.get(key)))
        if match is not None and match[1] != "content":
            found[field] = match[1]
    return found
