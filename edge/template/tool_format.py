"""Read and write calls of tools as one family of models writes them.

A format is data: the texts around a call, its name and its arguments, and one of five syntaxes for
what stands between. It is found by `boardfit.edge.template.tool_proof` and kept in a manifest.

    json      START {"name": NAME, "arguments": {…}} END
    args      START NAME MIDDLE {…} END
    tagged    START NAME MIDDLE (KEY name KEY_END value VALUE_END)… END
    pythonic  START NAME(name=value, …) END
    braced    START NAME{name:value, …} END, texts between QUOTEs

Several calls are joined by GAP, and stand between OPEN and CLOSE. What a model writes is hostile:
its length and depth are bounded, and a text that is no call stays text.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from boardfit.edge.fields import Flag, OneOf, Schema, Text, check_fields
from boardfit.edge.template.thinking import count_begun
from boardfit.edge.types import ToolCall

Syntax = Literal["json", "args", "tagged", "pythonic", "braced"]
Proof = Literal["template", "response_template", "family table", "generic"]
Schemas = Mapping[str, Mapping[str, Any]]
#: A call that is longer is shown as text.
MAX_CALL_CHARS = 1 << 16
_MAX_DEPTH = 64
_NAME = re.compile(r"[\w.:/-]{1,128}")
_BARE_KEY = re.compile(r"[^\s:{}\[\],\"']{1,128}")
_STRING = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,400}(?:\.\d{1,400})?(?:[eE][+-]?\d{1,3})?")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_PIECE = re.compile(r"<[^<>\s]*>|\[[A-Z_/]+\]|[^\s<\[]+|[<\[]")
_MARKERS = (
    "open",
    "start",
    "middle",
    "key",
    "key_end",
    "value_end",
    "end",
    "gap",
    "close",
    "quote",
)


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls, and what its template does about tools.

    `variable` is the template's variable that lists tools (empty: it lists none). `renders` and
    `results`: the template writes calls, and their results. `arguments`: it takes them as an object
    or as a text. `parallel`: several calls in one turn. `proof` is how all this is known.
    """

    syntax: Syntax
    proof: Proof
    open: str = ""
    start: str = ""
    middle: str = ""
    key: str = ""
    key_end: str = ""
    value_end: str = ""
    end: str = ""
    gap: str = ""
    close: str = ""
    quote: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    variable: str = ""
    renders: bool = False
    results: bool = False
    parallel: bool = True
    arguments: Literal["object", "text"] = "object"

    def to_dict(self) -> dict[str, Any]:
        """What a manifest holds: the fields that differ from their defaults."""
        return {
            e.name: value for e in fields(self) if (value := getattr(self, e.name)) != e.default
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ToolFormat:
        """Inverse of `to_dict`. Raises InputError for an unknown or missing key, or a bad value."""
        check_fields(data, _FIELDS, "tools", required=frozenset(("syntax", "proof")))
        return cls(**data)

    @property
    def is_bare(self) -> bool:
        """Whether nothing but its own syntax shows where a call begins."""
        return not (self.open + self.start).strip(" \n[{")

    @functools.cached_property
    def trigger(self) -> str:
        """The text that shows that a call begins; empty for a bare format."""
        if self.is_bare:
            return ""
        marker = (self.open.strip() or self.start.strip()).split()[0]
        first = _PIECE.findall(marker)[0]
        return first if len(first) > 1 and first[-1] in ">]" else marker

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Calls as the model itself writes them."""
        texts = [self.start + _WRITERS[self.syntax](self, call) + self.end for call in calls]
        return self.open + self.gap.join(texts) + self.close


_FIELDS: Schema = {
    "syntax": OneOf(get_args(Syntax)),
    "proof": OneOf(get_args(Proof)),
    **dict.fromkeys((*_MARKERS, "name_key", "arguments_key", "variable"), Text()),
    **dict.fromkeys(("renders", "results", "parallel"), Flag()),
    "arguments": OneOf(("object", "text")),
}


# ---- writing ------------------------------------------------------------------------------------


def to_json(value: Any) -> str:
    """JSON text in UTF-8. Raises ValueError for numbers that JSON does not have."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _write_json(form: ToolFormat, call: ToolCall) -> str:
    if not form.name_key:
        return to_json({call.name: call.values})
    return to_json({form.name_key: call.name, form.arguments_key: call.values})


def _write_args(form: ToolFormat, call: ToolCall) -> str:
    return call.name + form.middle + to_json(call.values)


def _write_tagged(form: ToolFormat, call: ToolCall) -> str:
    pairs = (
        f"{form.key}{name}{form.key_end}{value if isinstance(value, str) else to_json(value)}"
        f"{form.value_end}"
        for name, value in call.values.items()
    )
    return call.name + form.middle + "".join(pairs)


def _write_pythonic(form: ToolFormat, call: ToolCall) -> str:
    pairs = ", ".join(f"{name}={to_json(value)}" for name, value in call.values.items())
    return f"{call.name}({pairs})"


def _write_braced(form: ToolFormat, call: ToolCall) -> str:
    return call.name + _brace(form, call.values)


def _brace(form: ToolFormat, value: Any) -> str:
    if isinstance(value, str):
        return f"{form.quote}{value}{form.quote}"
    if isinstance(value, list):
        return "[" + ",".join(_brace(form, item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_brace(form, item)}" for k, item in value.items()) + "}"
    return to_json(value)


_WRITERS: dict[Syntax, Callable[[ToolFormat, ToolCall], str]] = {
    "json": _write_json,
    "args": _write_args,
    "tagged": _write_tagged,
    "pythonic": _write_pythonic,
    "braced": _write_braced,
}


# ---- reading ------------------------------------------------------------------------------------

_Found = tuple[list[tuple[str, dict[str, Any]]], int]


def read_calls(
    form: ToolFormat, text: str, schemas: Schemas, *, ends: bool = False
) -> tuple[list[ToolCall], int]:
    """The calls at the beginning of `text`, and where they end. `ends`: no more text will come, so
    that a missing marker at the end is forgiven. Raises ValueError for no calls, or half ones.
    """
    found, at = list[tuple[str, dict[str, Any]]](), _eat(form.open, text, 0)
    while True:
        calls, at = _READERS[form.syntax](form, text, _eat(form.start, text, at), schemas)
        found += calls
        at = _eat_last(form.end, text, at, ends)
        if not form.open + form.close:
            break
        try:
            at = _eat_last(form.close, text, at, ends)
            break
        except ValueError:
            at = _eat(form.gap, text, at)
    for name, values in found:
        if not _NAME.fullmatch(name) or not isinstance(values, dict):
            raise ValueError("no call")
    return [ToolCall(name, to_json(values)) for name, values in found], at


@functools.lru_cache(maxsize=256)
def _pattern(marker: str) -> re.Pattern[str]:
    return re.compile(r"\s*" + r"\s*".join(map(re.escape, _PIECE.findall(marker))))


def _eat(marker: str, text: str, at: int) -> int:
    """Where the text behind a marker begins. Spaces in it count for nothing."""
    match = _pattern(marker).match(text, at)
    if match is None:
        raise ValueError(f"expected {marker!r}")
    return match.end()


def _eat_last(marker: str, text: str, at: int, ends: bool) -> int:
    rest = text[at:].strip()
    if ends and marker.strip().startswith(rest):
        return len(text)
    return _eat(marker, text, at) if marker.strip() else at


def _read_name(text: str, at: int) -> tuple[str, int]:
    match = _NAME.match(text, _eat("", text, at))
    if match is None:
        raise ValueError("expected a name")
    return match[0], match.end()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, strict=False)


def _decode(text: str, at: int) -> tuple[Any, int]:
    value, end = _DECODER.raw_decode(text, _eat("", text, at))
    return value, end


def _read_json(form: ToolFormat, text: str, at: int, schemas: Schemas) -> _Found:
    value, at = _decode(text, at)
    return [_as_call(form, each) for each in (value if isinstance(value, list) else [value])], at


def _as_call(form: ToolFormat, value: Any) -> tuple[str, dict[str, Any]]:
    """The call in a JSON object. Small models swap the words for arguments."""
    if not isinstance(value, dict):
        raise ValueError("no object")
    if isinstance(value.get("function"), dict):
        value = value["function"]
    if not form.name_key and len(value) == 1:
        [(name, values)] = value.items()
    else:
        name = value.get(form.name_key)
        known = [key for key in (form.arguments_key, "arguments", "parameters") if key in value]
        values = value[known[0]] if known else {}
    values = json.loads(values) if isinstance(values, str) and values.strip() else values
    if not isinstance(name, str) or not isinstance(values or {}, dict):
        raise ValueError("no call")
    return name, values or {}


def _read_args(form: ToolFormat, text: str, at: int, schemas: Schemas) -> _Found:
    name, at = _read_name(text, at)
    values, at = _decode(text, _eat(form.middle, text, at))
    return [(name, values)], at


def _read_tagged(form: ToolFormat, text: str, at: int, schemas: Schemas) -> _Found:
    name, at = _read_name(text, at)
    at = _eat(form.middle, text, at)
    schema, values = schemas.get(name, {}), dict[str, Any]()
    while (match := _pattern(form.key).match(text, at)) is not None:
        key_at = match.end()
        middle = text.index(form.key_end.strip(), key_at)
        key = text[key_at:middle].strip()
        at = _eat(form.key_end, text, middle)
        end = text.index(form.value_end.strip(), at)
        value = text[at:end]
        if form.key_end.endswith("\n"):
            value = value.removeprefix("\n")
        if form.value_end.startswith("\n"):
            value = value.removesuffix("\n")
        if value.startswith("<![CDATA[") and value.endswith("]]>"):
            value = value[9:-3]
        values[key] = convert(value, (schema.get("properties") or {}).get(key))
        at = end + len(form.value_end.strip())
    return [(name, values)], at


def _read_pythonic(form: ToolFormat, text: str, at: int, schemas: Schemas) -> _Found:
    name, at = _read_name(text, at)
    at, values = _eat("(", text, at), dict[str, Any]()
    while _peek(text, at) != ")":
        if values:
            at = _eat(",", text, at)
        key, at = _read_name(text, at)
        values[key], at = read_value(text, _eat("=", text, at))
    return [(name, values)], _eat(")", text, at)


def _read_braced(form: ToolFormat, text: str, at: int, schemas: Schemas) -> _Found:
    name, at = _read_name(text, at)
    if _peek(text, at) != "{":
        raise ValueError("expected {")
    values, at = read_value(text, at, form.quote)
    return [(name, values)], at


_READERS: dict[Syntax, Callable[[ToolFormat, str, int, Schemas], _Found]] = {
    "json": _read_json,
    "args": _read_args,
    "tagged": _read_tagged,
    "pythonic": _read_pythonic,
    "braced": _read_braced,
}


def _peek(text: str, at: int) -> str:
    at = _eat("", text, at)
    return text[at : at + 1]


def read_value(text: str, at: int, quote: str = "", depth: int = 0) -> tuple[Any, int]:
    """A value as JSON or Python writes it, and where it ends. Texts may stand between `quote`s, and
    keys without any. Raises ValueError.
    """
    at = _eat("", text, at)
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if quote and text.startswith(quote, at):
        end = text.index(quote, at + len(quote))
        return text[at + len(quote) : end], end + len(quote)
    if text[at : at + 1] in ("[", "{"):
        return _read_items(text, at, quote, depth)
    if (match := _STRING.match(text, at)) is not None:
        inner = match[1] if match[1] is not None else match[2]
        return _ESCAPE.sub(_unescape, inner), match.end()
    if (match := _NUMBER.match(text, at)) is not None:
        return json.loads(match[0]), match.end()
    match = _NAME.match(text, at)
    if match is None or match[0] not in _WORDS:
        raise ValueError("expected a value")
    return _WORDS[match[0]], match.end()


def _read_items(text: str, at: int, quote: str, depth: int) -> tuple[Any, int]:
    is_list, at = text[at] == "[", at + 1
    closing = "]" if is_list else "}"
    items, values = list[Any](), dict[str, Any]()
    while _peek(text, at) != closing:
        if items or values:
            at = _eat(",", text, at)
        if not is_list:
            key, at = _read_key(text, at, quote)
            values[key], at = read_value(text, _eat(":", text, at), quote, depth + 1)
        else:
            item, at = read_value(text, at, quote, depth + 1)
            items.append(item)
    return items if is_list else values, _eat(closing, text, at)


def _read_key(text: str, at: int, quote: str) -> tuple[str, int]:
    at = _eat("", text, at)
    if text[at : at + 1] in ("'", '"') or (quote and text.startswith(quote, at)):
        key, at = read_value(text, at, quote)
        return str(key), at
    match = _BARE_KEY.match(text, at)
    if match is None:
        raise ValueError("expected a key")
    return match[0], match.end()


def _unescape(match: re.Match[str]) -> str:
    word = match[1]
    return chr(int(word[1:], 16)) if len(word) > 1 else _ESCAPES.get(word, word)


def convert(text: str, schema: Any) -> Any:
    """An argument that came without a type, as its schema has it; the text itself where it is none
    of the types.
    """
    schema = schema if isinstance(schema, dict) else {}
    types = schema.get("type", [])
    types = {types} if isinstance(types, str) else set(map(str, types))
    for other in (schema.get("anyOf"), schema.get("oneOf")):
        rows = [row for row in other if isinstance(row, dict)] if isinstance(other, list) else []
        types |= {str(row.get("type")) for row in rows}
    if types <= {"string"} and (types or "enum" not in schema):
        return text
    try:
        value, end = read_value(text, 0)
    except (ValueError, RecursionError):
        return text
    is_whole = not text[end:].strip()
    return value if is_whole and (not types or _type_names(value) & types) else text


def _type_names(value: Any) -> set[str]:
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    return set(_TYPES[type(value)])


_TYPES: dict[type, tuple[str, ...]] = {
    bool: ("boolean",), int: ("integer", "number"), str: ("string",), list: ("array",),
    dict: ("object",), type(None): ("null",),
}  # fmt: skip


# ---- a stream -----------------------------------------------------------------------------------


class CallReader:
    """Takes an answer apart as it comes: text to show, and whole calls. `schemas` are those of the
    tools' arguments. Calls beyond `most` are left out, and counted in `n_dropped`.
    """

    def __init__(self, form: ToolFormat, schemas: Schemas, *, most: int = 64) -> None:
        self._form, self._schemas, self._most = form, schemas, most
        self._held = ""
        self._is_fresh = True  # no text and no call so far: a bare call may come
        self._is_blank = True  # no text since the beginning, or since the latest call
        self._n = self.n_dropped = 0
        self.is_cut = False  # the answer ended within a call
        self._closers = frozenset("}])>" + form.end.strip()[-1:] + form.close.strip()[-1:])

    def feed(
        self, text: str, *, ends: bool = False, cut: bool = False
    ) -> tuple[str, list[ToolCall]]:
        """What is decided with more `text`. `ends`: it is the last, and `cut`: by a limit."""
        self._held += text
        shown, calls = "", list[ToolCall]()
        # Reading again what is held takes time: only where this text may end a call.
        can_close = ends or not self._closers.isdisjoint(text)
        while self._held:
            n, begins = self._split(ends)
            shown += self._show(n)
            if not begins:
                break
            if can_close and (found := self._read(ends)) is not None:
                calls += self._take(*found)
            elif ends and cut:
                self._held, self.is_cut = "", True
            elif ends or len(self._held) > MAX_CALL_CHARS:  # it was none
                shown += self._show(max(1, len(self._form.trigger)))
            else:
                break
        return shown, calls

    def _split(self, ends: bool) -> tuple[int, bool]:
        """How much of what is held is text for sure, and whether a call begins behind it."""
        trigger, held = self._form.trigger, self._held
        if not trigger:
            begins = self._is_fresh and held.lstrip()[:1] in _BARE_STARTS[self._form.syntax]
            n = 0 if begins or (self._is_fresh and not held.strip() and not ends) else len(held)
            return n, begins and bool(held.strip())
        if (at := held.find(trigger)) >= 0:
            return at, True
        if ends:
            return len(held), False
        n = len(held) - count_begun(held, [trigger])
        return (0 if self._is_blank and not held[:n].strip() else n), False

    def _show(self, n: int) -> str:
        """Take text off what is held; spaces around calls are dropped."""
        text, self._held = self._held[:n], self._held[n:]
        if self._is_blank and not text.strip() and (self._held or not self._is_fresh):
            return ""
        self._is_fresh = self._is_fresh and not text.strip()
        self._is_blank = self._is_blank and not text.strip()
        return text

    def _read(self, ends: bool) -> tuple[list[ToolCall], int] | None:
        try:
            calls, end = read_calls(self._form, self._held, self._schemas, ends=ends)
        except (ValueError, RecursionError):
            return None
        is_known = all(call.name in self._schemas for call in calls)
        return (calls, end) if calls and (self._form.trigger or is_known) else None

    def _take(self, calls: list[ToolCall], end: int) -> list[ToolCall]:
        self._held = self._held[end:].lstrip()
        self._is_fresh, self._is_blank = False, True
        room = max(0, self._most - self._n)
        self._n += len(calls[:room])
        self.n_dropped += len(calls[room:])
        return [
            ToolCall(c.name, c.arguments, f"call_{secrets.token_hex(12)}") for c in calls[:room]
        ]


#: What a call may begin with where no marker shows it.
_BARE_STARTS: Mapping[Syntax, tuple[str, ...]] = {
    "json": ("{", "["), "pythonic": ("[",), "args": (), "tagged": (), "braced": (),
}  # fmt: skip
