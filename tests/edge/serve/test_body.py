"""Readers of a request's JSON: whatever comes is read, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.serve.ask import Carried, Defaults
from boardfit.edge.serve.body import RequestFields, parse_json
from boardfit.edge.serve.refused import RequestRefused
from boardfit.edge.serve.wire import ollama, openai, responses

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_FIELDS = ["messages", "prompt", "input", "stop", "stream", "temperature", "max_tokens", "options",
           "think", "tools", "within", "chat_template_kwargs", "stream_options", "logprobs", "n",
           "instructions", "text", "reasoning", "seed", "system", "format", "raw"]  # fmt: skip
_MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["system", "user", "assistant", "tool"]) | _JSON,
                  "content": st.text(max_size=5) | _JSON, "tool_calls": _JSON})  # fmt: skip
_BODIES = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(_FIELDS, _JSON),
                  "messages": st.lists(_MESSAGE, max_size=5) | _JSON}
)  # fmt: skip
READERS = (
    openai.read_chat,
    openai.read_completion,
    responses.read_responses,
    ollama.read_chat,
    ollama.read_generate,
)


@given(_BODIES)
def test_any_body_is_read_or_refused(body: dict[str, Any]) -> None:
    for read in READERS:
        try:
            ask = read(RequestFields(body), Carried(), Defaults())
        except RequestRefused as refused:
            assert 400 <= refused.status < 500 and refused.message
        else:
            assert ask.question is not None
            assert not ask.messages or ask.messages[-1].role == "user"


@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        parse_json(data)
    except RequestRefused as refused:
        assert refused.status == 400


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("temperature", "hot", "temperature: expected a number, got a text"),
        ("temperature", 11, "temperature: expected 0 to 10"),
        ("max_tokens", True, "max_tokens: expected a whole number, got true or false"),
        ("max_tokens", 1.5, "max_tokens: expected a whole number, got a number"),
        ("stream", "yes", "stream: expected true or false, got a text"),
        ("stop", [1], "stop[0]: expected a text, got a number"),
        ("stop", ["a"] * 17, "stop: 17 entries; the limit is 16"),
        ("stop", "a" * 300, "stop[0]: 300 characters; the limit is 256"),
        ("stream_options", 7, "stream_options: expected an object, got a number"),
        ("chat_template_kwargs", {"a": []}, "chat_template_kwargs.a: expected a text"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(key: str, value: Any, words: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], key: value}
    with pytest.raises(RequestRefused) as refused:
        openai.read_chat(RequestFields(body), Carried(), Defaults())
    assert words in refused.value.message


def test_whole_floats_are_whole_numbers() -> None:
    assert RequestFields({"n": 3.0}).whole("n", 1, 5, 1) == 3
