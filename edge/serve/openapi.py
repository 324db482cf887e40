"""The server's own description, `/openapi.json`: made by the readers of requests, not beside them.

Each reader reads an example. What it asks of the body becomes the schema: names, types, ranges.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from boardfit.edge.serve.ask import Carried, Defaults
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.refused import RequestRefused
from boardfit.edge.serve.wire.base import JSON, Writer

_Schema = dict[str, Any]
_PART = {"type": "text", "text": "hello"}
#: Bodies that lead a reader past every field.
_EXAMPLES: tuple[Mapping[str, Any], ...] = (
    {
        "messages": [{"role": "user", "content": "hello"}], "prompt": "hello", "input": "hello",
        "max_tokens": 9, "max_completion_tokens": 9, "max_output_tokens": 9,
    },
    {"prompt": [1], "tokens": [1]},
    {
        "messages": [{"role": "user", "content": [_PART]}, {"role": "assistant", "content": "a"},
                     {"role": "user", "content": "b"}],
        "prompt": "hello", "raw": True, "input": [{"role": "user", "content": [_PART]}],
        "logprobs": True, "tools": [{"function": {"name": "f"}}],
    },
    {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "7"},
        ],
        "tools": [{"name": "f", "input_schema": {}}],
        "tool_choice": {"type": "function", "name": "f"},
    },
)  # fmt: skip
_ERROR: _Schema = {
    "description": "Refused: the field or the time that is the cause.",
    "content": {JSON: {"schema": {"type": "object", "required": ["error"]}}},
}

_FACTS: _Schema = {"responses": {"200": {"description": "Facts."}, "default": _ERROR}}


class RecordingFields(RequestFields):
    """Fields that note in `schema` what a reader asks of them."""

    def __init__(self, fields: Mapping[str, Any], schema: _Schema, path: str = "") -> None:
        super().__init__(fields, path)
        self._plain = RequestFields(fields, path)
        self._schema = schema
        schema.setdefault("type", ["object", "null"])
        schema.setdefault("properties", {})

    def _note(self, key: str, **schema: Any) -> None:
        known = self._schema["properties"].setdefault(key, {})
        if not schema or known == schema:
            return
        if not known:
            known.update(schema)
        elif schema not in known.setdefault("anyOf", [dict(known)]):
            known["anyOf"].append(schema)
            for name in set(known) - {"anyOf"}:
                del known[name]

    def get(self, key: str) -> Any:
        value = self._plain.get(key)
        kind = "string" if isinstance(value, str) else "array" if isinstance(value, list) else None
        self._note(key, **({"type": [kind]} if kind else {}))
        return value

    def text(self, key: str, default: str = "", *, most: int = 1 << 20) -> str:
        self._note(key, type=["string", "null"], maxLength=most)
        return self._plain.text(key, default, most=most)

    def flag(self, key: str, default: bool) -> bool:
        self._note(key, type=["boolean", "null"])
        return self._plain.flag(key, default)

    def whole(self, key: str, low: int, high: int, default: int) -> int:
        self._note(key, type=["integer", "null"], minimum=low, maximum=high)
        return self._plain.whole(key, low, high, default)

    def number(self, key: str, low: float, high: float, default: float) -> float:
        self._note(key, type=["number", "null"], minimum=low, maximum=high)
        return self._plain.number(key, low, high, default)

    def choice(self, key: str, words: Sequence[str], default: str) -> str:
        self._note(key, enum=[*words, None])
        return self._plain.choice(key, words, default)

    def items(self, key: str, *, most: int) -> list[Any]:
        self._note(key, type=["array", "null"], maxItems=most)
        return self._plain.items(key, most=most)

    def texts(self, key: str, *, most: int, longest: int) -> tuple[str, ...]:
        each = {"type": "string", "maxLength": longest}
        self._note(key, anyOf=[each, {"type": ["array", "null"], "maxItems": most, "items": each}])
        return self._plain.texts(key, most=most, longest=longest)

    def table(self, key: str) -> RequestFields:
        inner = self._inner(key, "object", "self")
        return RecordingFields(self._fields.get(key) or {}, inner, f"{self.name(key)}.")

    def tables(self, key: str, *, most: int) -> list[RequestFields]:
        inner = self._inner(key, "array", "items")
        found = self._fields.get(key) or []
        return [RecordingFields(each, inner, f"{self.name(key)}[].") for each in found]

    def scalars(self, key: str) -> dict[str, Any]:
        self._note(key, type=["object", "null"])
        return {}

    def _inner(self, key: str, kind: str, place: str) -> _Schema:
        """The schema of the objects in a field, which grows while they are read."""
        properties = self._schema["properties"]
        known: _Schema = properties.setdefault(key, {})
        for each in known.get("anyOf", [known] if known else []):
            if kind in each.get("type", ()) and (place == "self" or place in each):
                found: _Schema = each if place == "self" else each[place]
                return found
        fresh: _Schema = {"type": [kind, "null"]}
        self._note(key, **(fresh if place == "self" else {**fresh, place: {}}))
        return self._inner(key, kind, place)


Reader = Callable[[RequestFields, Carried, Defaults], object]


def describe_body(read: Reader) -> _Schema:
    """The schema of the bodies that `read` takes."""
    schema: _Schema = {"type": "object"}
    for example in _EXAMPLES:
        try:
            read(RecordingFields(example, schema), Carried(), Defaults())
        except RequestRefused:  # an example for other readers; what it asked is noted
            continue
    return schema


def drop_limits(read: Callable[[RequestFields], object]) -> Reader:
    """A reader of a body alone, as the description takes it."""
    return lambda body, _carried, _defaults: read(body)


def _describe_request(schema: _Schema) -> _Schema:
    return {"required": True, "content": {JSON: {"schema": schema}}}


def describe_server(
    answers: Mapping[str, tuple[Reader, type[Writer]]],
    bodies: Mapping[str, Reader],
    others: Iterable[tuple[str, str]],
) -> _Schema:
    """The description of all routes: `answers` with tokens, other readers of `bodies`, and
    (method, path) of the rest.
    """
    paths: dict[str, _Schema] = {}
    for path, (read, writer) in answers.items():
        content = {JSON: {"schema": {"type": "object", "required": list(writer.required)}},
                   writer.stream_type: {"schema": {"type": "string"}}}  # fmt: skip
        paths[path] = {
            "post": {
                "requestBody": _describe_request(describe_body(read)),
                "responses": {"200": {"description": "The answer.", "content": content},
                              "default": _ERROR},
            }
        }  # fmt: skip
    for path, read in bodies.items():
        paths[path] = {"post": {"requestBody": _describe_request(describe_body(read)), **_FACTS}}
    for method, path in others:
        operation: _Schema = {**_FACTS}
        if method == "POST":
            operation["requestBody"] = _describe_request({"type": "object"})
        paths.setdefault(path, {})[method.lower()] = operation
    return {"openapi": "3.1.0", "info": {"title": "boardfit", "version": "1"}, "paths": paths}
