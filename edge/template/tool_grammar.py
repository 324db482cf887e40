"""Write a grammar of calls, so that a mask holds a model to the tools and schemas of a request.

The grammar is Lark as llguidance reads it. What comes from a request stands in it as JSON and as
quoted text only. Where a family writes arguments without JSON, a schema that this file cannot turn
into rules is refused with the keyword that is the cause.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from boardfit.edge.errors import UsageError
from boardfit.edge.template.tool_format import ToolFormat

#: Calls in one answer: a small model that repeats itself would fill the context.
MAX_CALLS = 8
#: Where one space may stand, and no more.
_SPACES = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
_MARKER = re.compile(r"(<[^<>\s]*>|\[[A-Z_/]+\])")
#: Text up to a closing tag.
_FREE = r"/([^<]|<[^\/|])*/"
_PLAIN = frozenset(("type", "enum", "const", "description", "title", "default", "examples"))

Control = Callable[[str], int | None]


def write_grammar(
    form: ToolFormat,
    tools: Mapping[str, Mapping[str, Any]],
    *,
    after: str = "",
    parallel: bool = True,
    control: Control = lambda piece: None,
) -> str:
    """The Lark text for calls of `tools`, whose values are schemas of arguments. `after`: a text
    that is written already. `control` gives the id of a marker that is a token without a text.
    Raises UsageError for a schema that cannot be enforced.
    """
    return _Grammar(form, control).write(tools, after, parallel)


class _Grammar:
    def __init__(self, form: ToolFormat, control: Control) -> None:
        self._form, self._control = form, control
        self._rules: list[str] = []
        self._defs: Mapping[str, Any] = {}

    def write(self, tools: Mapping[str, Mapping[str, Any]], after: str, parallel: bool) -> str:
        form = self._form
        calls = [self._call(name, _close_object(schema)) for name, schema in tools.items()]
        first, start = f"{form.open}{form.start}".lstrip(), form.start
        if form.is_bare and after:
            calls = [call.replace(self._literal(after), '""', 1) for call in calls]
            first = ""
        body, end = self._rule(" | ".join(calls)), self._literal(form.end)
        one = f"{self._literal(first.removeprefix(after))} {body} {end}"
        more = f"({self._literal(form.gap + start)} {body} {end}){{0,{MAX_CALLS - 1}}}"
        several = more if parallel and form.parallel and not form.is_bare else ""
        return "\n".join([f"start: {one} {several} {self._literal(form.close)}", *self._rules])

    def _rule(self, body: str) -> str:
        self._rules.append(f"r{len(self._rules)}: {body}")
        return f"r{len(self._rules) - 1}"

    def _literal(self, text: str) -> str:
        """Text, and markers by the ids of their tokens."""
        parts = []
        for piece in filter(None, _MARKER.split(text)):
            token = self._control(piece) if _MARKER.fullmatch(piece) else None
            parts.append(f"<[{token}]>" if token is not None else _quote(piece))
        return " ".join(parts) or '""'

    def _call(self, name: str, schema: Mapping[str, Any]) -> str:
        form = self._form
        self._defs = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        if form.syntax == "json" and not form.name_key:
            return self._rule(f"{_quote(f'{{{json.dumps(name)}: ')} {_json(schema)} {_quote('}')}")
        if form.syntax == "json":
            head = f'{{"{form.name_key}":'
            tail = f' {json.dumps(name)}, "{form.arguments_key}": '
            return f"{_quote(head)} {self._rule(f'{_quote(tail)} {_json(schema)}')} {_quote('}')}"
        if form.syntax == "args":
            return self._rule(f"{self._literal(name + form.middle)} {_json(schema)}")
        if form.syntax == "braced":
            return self._rule(f"{_quote(name)} {self._braced(schema)}")
        if form.syntax == "pythonic":
            pairs = self._pairs(
                schema, lambda key, value: f"{_quote(f'{key}=')} {self._value(value)}"
            )
            return self._rule(f"{_quote(name + '(')} {pairs} {_quote(')')}")
        pairs = self._pairs(schema, self._tag, gap="")
        return self._rule(f"{self._literal(name + form.middle)} {pairs}")

    def _pairs(
        self, schema: Mapping[str, Any], write: Callable[[str, Any], str], gap: str = ", "
    ) -> str:
        """The properties of an object in their order; those not required may be left out."""
        _check_keys(schema, {"properties", "required", "additionalProperties"})
        items = list((schema.get("properties") or {}).items())
        required = set(schema.get("required") or ())
        begun = first = '""'  # what may follow where a pair was written, and where none was
        between = _quote(gap) if gap else ""
        for key, value in reversed(items):
            pair = self._rule(write(key, value))
            with_gap, alone = f"{between} {pair} {begun}", f"{pair} {begun}"
            if key in required:
                begun, first = self._rule(with_gap), self._rule(alone)
            else:
                begun, first = (
                    self._rule(f"({with_gap}) | {begun}"),
                    self._rule(f"({alone}) | {first}"),
                )
        return first

    def _tag(self, key: str, schema: Any) -> str:
        form = self._form
        head = f"{self._literal(form.key)} {_quote(key)} {self._literal(form.key_end)}"
        tail = self._literal(form.value_end)
        return f"{head} {self._text_or(schema, self._value)} {tail}"

    def _text_or(self, schema: Any, other: Callable[[Any], str], quote: str = "") -> str:
        """Text without quotes of its own, where the schema has it; else what `other` writes."""
        schema = schema if isinstance(schema, dict) else {}
        options = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if options is not None and all(isinstance(each, str) for each in options):
            return "(" + " | ".join(f"{quote} {_quote(each)} {quote}" for each in options) + ")"
        if schema.get("type", "string") == "string" and options is None and not _is_mixed(schema):
            _check_keys(schema, _PLAIN)
            return f"{quote} {_FREE} {quote}"
        return other(schema)

    def _value(self, schema: Any) -> str:
        return _json({**schema, **self._defs} if isinstance(schema, dict) else schema)

    def _braced(self, schema: Any) -> str:
        return self._text_or(schema, self._braced_other, self._literal(self._form.quote))

    def _braced_other(self, schema: Mapping[str, Any]) -> str:
        kind = schema.get("type")
        if isinstance(schema.get("anyOf"), list):
            return "(" + " | ".join(map(self._braced, schema["anyOf"])) + ")"
        if kind == "object":
            pairs = self._pairs(
                schema, lambda key, value: f"{_quote(f'{key}:')} {self._braced(value)}", ","
            )
            return f"{_quote('{')} {pairs} {_quote('}')}"
        if kind == "array":
            _check_keys(schema, {"items"})
            item = self._rule(self._braced(schema.get("items", {})))
            return f'"[" ({item} ("," {item})*)? "]"'
        if kind in ("integer", "number", "boolean", "null"):
            return self._value(schema)
        raise UsageError(f"the schema of a tool cannot be enforced: {next(iter(schema), 'type')}")


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else '""'


def _json(schema: Any) -> str:
    value = {**schema, "x-guidance": _SPACES} if isinstance(schema, dict) else schema
    return f"%json {json.dumps(value)}"


def _is_mixed(schema: Mapping[str, Any]) -> bool:
    return bool({"anyOf", "oneOf", "allOf", "$ref"} & schema.keys())


def _check_keys(
    schema: Mapping[str, Any], known: Sequence[str] | set[str] | frozenset[str]
) -> None:
    """Raise UsageError for a keyword that would be left out in silence."""
    odd = sorted(set(schema) - _PLAIN - set(known) - {"$defs", "definitions", "$schema"})
    if odd:
        raise UsageError(f"the schema of a tool cannot be enforced: {odd[0]}")


def _close_object(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of arguments: an object that holds nothing that the tool does not name."""
    closed = {"type": "object", **schema}
    if set(closed) <= {"type", "properties", "required", "description", "title", "$schema"} | {
        "$defs", "definitions",
    }:  # fmt: skip
        closed.setdefault("properties", {})
        closed["additionalProperties"] = False
    return closed
