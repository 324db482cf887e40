"""A grammar allows what a family writes and nothing else, and what it allows is read back."""

from __future__ import annotations

import json
import random
from typing import Any

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boardfit.edge.errors import UsageError
from boardfit.edge.template.tool_format import CallReader, ToolFormat
from boardfit.edge.template.tool_grammar import write_grammar
from boardfit.edge.types import ToolCall
from tests.edge.template.test_tool_format import FORMS

ROOMS = ["hall", "café", 'the "old" one', "a, b"]
TOOLS: dict[str, dict[str, Any]] = {
    "set_lamp": {
        "type": "object",
        "properties": {
            "room": {"type": "string", "enum": ROOMS},
            "level": {"type": "integer", "minimum": 0, "maximum": 100},
            "warm": {"type": "boolean"},
            "names": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
        },
        "required": ["room"],
    },
    "get_time": {},
    "say": {"properties": {"text": {"type": "string"}}, "required": ["text"]},
}
ARGUMENTS = st.fixed_dictionaries(
    {"room": st.sampled_from(ROOMS)},
    optional={
        "level": st.integers(0, 100),
        "warm": st.booleans(),
        "names": st.lists(st.sampled_from(["x", "y"]), max_size=2),
    },
)
PLACES = list(TOOLS["set_lamp"]["properties"])


class Bytes:
    """A vocabulary of single bytes."""

    eos_token_id, bos_token_id = 256, None
    tokens = [*(bytes([i]) for i in range(256)), b"<end>"]  # noqa: RUF012
    special_token_ids = [256]  # noqa: RUF012

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


def open_grammar(tokenizer: Any, form: ToolFormat, **rest: Any) -> Any:
    lark = write_grammar(form, TOOLS, **rest)
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), f"{matcher.get_error()}\n{lark}"
    assert not matcher.get_grammar_warnings()
    return matcher


def accepts(matcher: Any, text: str) -> bool:
    data = list(text.encode())
    n: int = matcher.try_consume_tokens(data)
    return n == len(data) and bool(matcher.is_accepting())


@pytest.mark.parametrize("name", FORMS)
@given(arguments=ARGUMENTS)
@settings(max_examples=15, deadline=None)
def test_what_a_family_writes_is_allowed(
    name: str, tokenizer: Any, arguments: dict[str, Any]
) -> None:
    form = FORMS[name]
    ordered = {key: arguments[key] for key in PLACES if key in arguments}
    calls = [
        ToolCall("set_lamp", json.dumps(ordered, ensure_ascii=False)),
        ToolCall("get_time", "{}"),
    ]
    for some in (calls[:1], calls[1:], *([calls] if form.parallel else [])):
        text = form.write(some)
        assert accepts(open_grammar(tokenizer, form), text), text
        begun = form.trigger or f'{{"{form.name_key}":'
        rest = text[text.index(begun) + len(begun) :]
        assert accepts(open_grammar(tokenizer, form, after=begun), rest) == (
            not form.is_bare or len(some) == 1
        )  # fmt: skip
    if form.parallel:
        assert not accepts(open_grammar(tokenizer, form, parallel=False), form.write(calls))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "call",
    [
        ToolCall("other", "{}"),
        ToolCall("set_lamp", '{"room": "attic"}'),
        ToolCall("set_lamp", "{}"),
        ToolCall("set_lamp", '{"room": "hall", "level": 101}'),
        ToolCall("set_lamp", '{"room": "hall", "other": 1}'),
        ToolCall("get_time", '{"zone": "UTC"}'),
    ],
    ids=["name", "enum", "required", "range", "more", "none"],
)
def test_nothing_else_is_allowed(name: str, tokenizer: Any, call: ToolCall) -> None:
    form = FORMS[name]
    assert not accepts(open_grammar(tokenizer, form), form.write([call]))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_what_is_allowed_is_read_back(name: str, tokenizer: Any, seed: int) -> None:
    """Random walks through the grammar, which end when they can."""
    form, walk = FORMS[name], random.Random(seed)
    matcher, text = open_grammar(tokenizer, form), bytearray()
    while not matcher.is_stopped() and len(text) < 3000:
        if matcher.is_accepting() and walk.random() < 0.5:
            break
        mask = matcher.compute_logit_bias()
        allowed = [i for i in range(256) if mask[i]]
        plain = [i for i in allowed if 32 <= i < 127]
        token = walk.choice(plain or allowed) if allowed else 256
        if token == 256:
            break
        assert matcher.consume_token(token)
        text.append(token)
    if not matcher.is_accepting() and not matcher.is_stopped():
        return  # a free text that found no end
    shown, calls = CallReader(form, TOOLS).feed(text.decode("utf-8", "replace"), ends=True)
    assert calls and not shown.strip(), bytes(text)
    for call in calls:
        if call.name == "set_lamp":
            assert call.values["room"] in ROOMS and 0 <= call.values.get("level", 0) <= 100


def test_markers_without_text_are_named_by_their_ids() -> None:
    form = FORMS["pythonic"]
    ids = {"<|calls|>": 7, "<|/calls|>": 8}
    lark = write_grammar(form, {"f": {}}, control=ids.get)
    assert 'start: <[7]> "["' in lark and "<[8]>" in lark
    assert "<[7]>" not in write_grammar(form, {"f": {}}, after="<|calls|>", control=ids.get)


@pytest.mark.parametrize(
    ("name", "schema", "key"),
    [
        ("tagged", {"type": "string", "pattern": "a+"}, "pattern"),
        ("tagged", {"type": "string", "minLength": 3}, "minLength"),
        ("braced", {"type": "array", "items": {}, "uniqueItems": True}, "uniqueItems"),
        ("braced", {"oneOf": [{}]}, "oneOf"),
        ("pythonic", None, "minProperties"),
    ],
    ids=["pattern", "length", "unique", "one", "object"],
)
def test_a_schema_that_has_no_rules_is_refused_by_its_keyword(
    name: str, schema: Any, key: str
) -> None:
    rest = {"minProperties": 1} if schema is None else {"properties": {"a": schema}}
    with pytest.raises(UsageError, match=key):
        write_grammar(FORMS[name], {"f": {"type": "object", **rest}})


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "evil", ['"\nstart: /.*/\n', "<[5]>", "%json {}", "\\", "é\u2028"], ids=str
)
def test_texts_of_a_request_write_no_grammar(name: str, tokenizer: Any, evil: str) -> None:
    """As names of arguments, as options, as descriptions."""
    form = FORMS[name]
    tools = {"f": {
        "type": "object", "description": evil, "properties": {"a": {"enum": [evil, "b"]}, evil: {}},
        "required": ["a"]}}  # fmt: skip
    lark = write_grammar(form, tools, control={"<[5]>": 9}.get)
    assert "<[9]>" not in lark
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    assert accepts(matcher.deep_copy(), form.write([ToolCall("f", '{"a": "b"}')]))
    assert not accepts(matcher, form.write([ToolCall("f", '{"a": "c"}')]))
