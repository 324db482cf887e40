"""Calls are read back equal in every format, however the stream is cut, and no text breaks it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.errors import InputError
from boardfit.edge.template.thinking import ThinkingFilter, all_kinds
from boardfit.edge.template.tool_format import CallReader, ToolFormat, convert
from boardfit.edge.template.tools import Tool, ToolFilter, ToolUse, split_calls
from boardfit.edge.types import AnswerFilter, Message, TokenEvent, ToolCall

HERMES = ToolFormat(
    "json", "template", start="<tool_call>\n", end="\n</tool_call>", gap="\n", renders=True
)
FORMS = {
    "hermes": HERMES,
    "nemo": ToolFormat("json", "template", open="[TOOL_CALLS][", gap=", ", close="]"),
    "bare": ToolFormat("json", "template", arguments_key="parameters", parallel=False),
    "keyed": ToolFormat("json", "template", start="<c>", end="</c>", name_key=""),
    "args": ToolFormat("args", "template", start="[TOOL_CALLS]", middle="[ARGS]"),
    "fenced": ToolFormat(
        "args", "template", open="<|calls|>", start="<|call|>f<|sep|>", middle="\n```json\n",
        end="\n```<|end_call|>", gap="\n", close="<|calls_end|>"),
    "tagged": ToolFormat(
        "tagged", "template", start="<tool_call>\n<function=", middle=">\n", key="<parameter=",
        key_end=">\n", value_end="\n</parameter>\n", end="</function>\n</tool_call>", gap="\n"),
    "inline": ToolFormat(
        "tagged", "template", start='<function name="', middle='">', key='<param name="',
        key_end='">', value_end="</param>", end="</function>"),
    "pythonic": ToolFormat(
        "pythonic", "template", open="<|calls|>[", gap=", ", close="]<|/calls|>"),
    "braced": ToolFormat(
        "braced", "template", start="<|tool_call>call:", end="<tool_call|>", quote='<|"|>'),
}  # fmt: skip
KEYS = ["room", "level", "names", "warm", "rest"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "room": {"type": "string"},
        "level": {"type": "integer"},
        "names": {"type": "array"},
        "warm": {"type": ["boolean", "null"]},
        "rest": {"anyOf": [{"type": "object"}, {"type": "number"}]},
    },
}
SCHEMAS = {"f": SCHEMA, "home.set-lamp": SCHEMA}

words = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ['"', "'", "\\", "{}", "a, b=[1]", "}\n", "<b>", "]", "call:", "é 🙂"]
)
scalars = words | st.integers(-(10**9), 10**9) | st.booleans() | st.none() | st.floats(-1e6, 1e6)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "room": words,
        "level": st.integers(-(10**9), 10**9),
        "names": st.lists(scalars, max_size=3),
        "warm": st.booleans() | st.none(),
        "rest": st.dictionaries(st.sampled_from(KEYS), scalars, max_size=3) | st.floats(-9, 9),
    },
)
CALLS = st.lists(st.tuples(st.sampled_from(sorted(SCHEMAS)), ARGUMENTS), min_size=1, max_size=3)


def read(form: ToolFormat, pieces: list[str], **end: bool) -> tuple[str, list[tuple[str, Any]]]:
    """Text and calls of a stream."""
    reader, shown, calls = CallReader(form, SCHEMAS), "", list[ToolCall]()
    for i, piece in enumerate([*pieces, ""]):
        last = end or {"ends": True} if i == len(pieces) else {}
        text, found = reader.feed(piece, **last)
        shown, calls = shown + text, calls + found
    return shown, [(call.name, call.values) for call in calls]


def holds_no_marker(form: ToolFormat, value: Any) -> bool:
    """What stands between markers without quotes cannot hold them."""
    text = json.dumps(value, ensure_ascii=False)
    if form.syntax == "tagged":
        room = value.get("room", "")
        return form.value_end.strip() not in text and not room.startswith("<![CDATA[")
    return not form.quote or form.quote not in repr(value)


@pytest.mark.parametrize("name", FORMS)
@given(calls=CALLS, cuts=st.lists(st.integers(0, 400), max_size=8), before=st.booleans())
@settings(max_examples=60, deadline=None)
def test_calls_come_back_equal_however_they_are_cut(
    name: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int], before: bool
) -> None:
    form = FORMS[name]
    calls = [call for call in calls if holds_no_marker(form, call[1])]
    calls = calls if form.parallel else calls[:1]
    if not calls:
        return
    text = form.write([ToolCall(n, json.dumps(values)) for n, values in calls])
    said = "Let me see. " if before and form.trigger else ""
    text = said + text
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    assert read(form, pieces) == (said, calls)
    assert read(form, list(text)) == (said, calls)


@pytest.mark.parametrize("name", FORMS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_text_breaks_a_reader_and_none_is_lost(name: str, data: st.DataObject) -> None:
    form = FORMS[name]
    parts = [form.trigger, form.open, form.start, form.middle, form.key, form.end, form.close]
    piece = words | st.sampled_from([*filter(None, parts), "f", "{", "[", '{"name":', "1e999", "("])
    pieces = data.draw(st.lists(piece, max_size=12))
    shown, calls = read(form, pieces)
    text = "".join(pieces)
    for call in calls:
        assert isinstance(call[1], dict)
    if not calls:
        assert shown == text or not text.strip() or shown.strip() == text.strip()
    read(form, pieces, ends=True, cut=True)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "deep", ["[" * 50_000, '{"a":' * 50_000, "(" * 70_000, "-" * 70_000, "9" * 70_000]
)
def test_deep_and_long_texts_are_text(name: str, deep: str) -> None:
    form = FORMS[name]
    text = f"{form.open}{form.start}{deep}"
    assert read(form, [text[i : i + 5000] for i in range(0, len(text), 5000)])[1] == []


def test_a_call_that_is_cut_is_not_shown() -> None:
    text = 'One moment.\n<tool_call>\n{"name": "f", "arguments": {"room": "ki'
    reader = CallReader(HERMES, SCHEMAS)
    shown, calls = reader.feed(text, ends=True, cut=True)
    assert (shown, calls, reader.is_cut) == ("One moment.\n", [], True)
    assert read(HERMES, [text]) == (text, [])


def test_what_small_models_write_is_understood() -> None:
    call = [("f", {"room": "hall"})]
    for text in (
        '<tool_call>{"name": "f", "arguments": {"room": "hall"}}</tool_call>',
        '<tool_call>\n{"name": "f", "parameters": {"room": "hall"}}',
        '<tool_call>{"name":"f","arguments":"{\\"room\\": \\"hall\\"}"}</tool_call>\n\n',
        '<tool_call>[{"type":"function","function":{"name":"f","arguments":{"room":"hall"}}}]',
    ):
        assert read(HERMES, [text]) == ("", call)
    assert read(HERMES, ['<tool_call>{"name": "f"}</tool_call> Done.']) == ("Done.", [("f", {})])
    for text in ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": "a b"}</tool_call>'):
        assert read(HERMES, [text]) == (text, [])


def test_a_bare_call_has_a_known_name_and_comes_first() -> None:
    bare = FORMS["bare"]
    assert read(bare, ['{"name": "f", "parameters": {}}']) == ("", [("f", {})])
    for text in (
        '{"name": "g", "parameters": {}}',
        'So: {"name": "f", "parameters": {}}',
        '{"a": 1}',
    ):
        assert read(bare, list(text)) == (text, [])


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("7", {"type": "string"}, "7"),
        ("7", {"type": "integer"}, 7),
        ("7.5", {"type": "number"}, 7.5),
        ("7.5", {"type": "integer"}, "7.5"),
        ("True", {"type": "boolean"}, True),
        ("[1, 'a']", {"type": "array"}, [1, "a"]),
        ("null", {"type": ["string", "null"]}, None),
        ("warm", {"type": "integer"}, "warm"),
        ("8", {"enum": [8, 9]}, 8),
        ("x", None, "x"),
    ],
    ids=str,
)
def test_a_value_without_a_type_gets_that_of_its_schema(text: str, schema: Any, value: Any) -> None:
    assert convert(text, schema) == value


def test_a_format_of_a_manifest_is_checked() -> None:
    for form in FORMS.values():
        assert ToolFormat.from_dict(json.loads(json.dumps(form.to_dict()))) == form
    for bad in ({}, {"syntax": "xml", "proof": "template"}, {**HERMES.to_dict(), "start": 5},
                {**HERMES.to_dict(), "code": "x"}):  # fmt: skip
        with pytest.raises(InputError):
            ToolFormat.from_dict(bad)


def test_markers_that_are_tokens_without_text_and_calls_among_thoughts() -> None:
    use = ToolUse(FORMS["pythonic"], (Tool("f", "", SCHEMA),))
    ids = {"<|calls|>": 7, "<|/calls|>": 8}
    inner: AnswerFilter = ThinkingFilter(all_kinds(), all_kinds()[0])
    sort = use.filter(inner, lambda text: [ids.get(text, 1)], lambda token: token == 1)
    stream = [(1, "Hm, "), (7, ""), (1, "[f()]"), (8, ""), (1, "</think>\n\n"),
              (7, ""), (1, "[f(ro"), (1, 'om="hall")]'), (8, "")]  # fmt: skip
    events = [sort(TokenEvent(token, text, 0)) for token, text in stream]
    events.append(sort(TokenEvent(None, "", 0, "stop")))
    assert "".join(e.thought for e in events) == "Hm, [f()]"
    assert "".join(e.text for e in events).strip() == ""
    [call] = [call for event in events for call in event.calls]
    assert call.values == {"room": "hall"} and events[-2].calls


def test_one_call_is_let_through_where_one_is_allowed() -> None:
    use = ToolUse(HERMES, (Tool("f", "", SCHEMA),), parallel=False)
    sort = use.filter(AnswerFilter(), lambda text: [1, 2], lambda token: True)
    assert isinstance(sort, ToolFilter)
    text = HERMES.write([ToolCall("f", "{}"), ToolCall("f", "{}")])
    event = sort(TokenEvent(1, text, 0, "stop"))
    assert len(event.calls) == 1 and event.text == "" and sort.reader.n_dropped == 1


# ---- into the template --------------------------------------------------------------------------

PAST = [
    Message("user", "q"),
    Message("assistant", "a", (ToolCall("f", '{"level": 1}', "x"), ToolCall("f", "{}", "y"))),
    Message("tool", "second", call_id="y"),
    Message("tool", "first", call_id="x"),
]


def shape(use: ToolUse, messages: list[Message] = PAST) -> list[dict[str, Any]]:
    return use.shape(messages, lambda text, is_own: text)


def test_ids_are_made_that_every_template_takes() -> None:
    form = ToolFormat("json", "template", start="<c>", renders=True, results=True)
    shaped = shape(ToolUse(form))
    calls = shaped[1]["tool_calls"]
    assert [call["id"] for call in calls] == ["call00000", "call00001"]
    assert [m["tool_call_id"] for m in shaped[2:]] == ["call00001", "call00000"]
    assert calls[0]["function"]["arguments"] == {"level": 1} and shaped[2]["name"] == "f"
    unnamed = [*PAST[:2], Message("tool", "first"), Message("tool", "second")]
    assert [m["tool_call_id"] for m in shape(ToolUse(form), unnamed)[2:]] == [
        "call00000", "call00001",
    ]  # fmt: skip


def test_calls_are_split_for_templates_that_take_one() -> None:
    found = split_calls(PAST)
    assert [(m.role, m.content, len(m.calls)) for m in found] == [
        ("user", "q", 0), ("assistant", "a", 1), ("tool", "first", 0),
        ("assistant", "", 1), ("tool", "second", 0),
    ]  # fmt: skip


def test_a_template_that_knows_no_tools_gets_words() -> None:
    form = ToolFormat("json", "generic")
    tool = Tool("f", "does f", SCHEMA)
    shaped = shape(ToolUse(form, (tool,)))
    assert [m["role"] for m in shaped] == ["system", "user", "assistant", "user"]
    assert "does f" in shaped[0]["content"] and '{"name": "NAME"' in shaped[0]["content"]
    assert shaped[2]["content"].startswith('a{"name": "f", "arguments": {"level": 1}}')
    assert shaped[3]["content"] == "Result of f: second\n\nResult of f: first"
    assert shape(ToolUse(form, (tool,), choice="none"))[0]["role"] == "user"
