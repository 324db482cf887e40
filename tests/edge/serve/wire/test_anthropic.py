"""Anthropic's Messages over the wire, and what becomes of their blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from boardfit.edge.chat.session import Answer
from boardfit.edge.serve.ask import Ask
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.job import Ended
from boardfit.edge.serve.refused import RequestRefused
from boardfit.edge.serve.wire.anthropic import MessagesWriter, _read, _read_tools
from boardfit.edge.types import GenerationConfig, TokenEvent
from tests.edge.engines.engine_models import CHAT_REPLY
from tests.edge.serve.conftest import HELLO, Served

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]

MESSAGES = "/v1/messages"


def ask(served: Served, **fields: object) -> Any:
    return served.post(MESSAGES, {**HELLO, "max_tokens": 50, **fields})


def test_a_message_has_its_blocks_and_counts(scripted: Served) -> None:
    found = ask(scripted, model="claude", system="be brief").json()
    assert (found["type"], found["role"], found["model"]) == ("message", "assistant", "scripted")
    assert found["content"] == [{"type": "text", "text": CHAT_REPLY}]
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)
    counts = found["usage"]
    n_prompt = counts["input_tokens"] + counts["cache_read_input_tokens"]
    assert counts["input_tokens"] > 0 and counts["output_tokens"] > 0
    body = {**HELLO, "system": [{"type": "text", "text": "be brief"}]}
    counted = scripted.post(f"{MESSAGES}/count_tokens", body).json()
    assert counted == {"input_tokens": n_prompt}


def test_a_stream_is_one_of_numbered_blocks(scripted: Served) -> None:
    body = {**HELLO, "max_tokens": 50, "stream": True}
    text = scripted.client.post(MESSAGES, json=body).text
    events = [part.split("\n") for part in text.strip().split("\n\n")]
    found = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [name.removeprefix("event: ") for name, _ in events] == [each["type"] for each in found]
    kinds = [each["type"] for each in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert "".join(each["delta"]["text"] for each in found[2:-3]) == CHAT_REPLY
    assert found[0]["message"]["content"] == [] and found[0]["message"]["stop_reason"] is None
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"]["input_tokens"] > 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 1}, ("max_tokens", None)),
        ({"stop_sequences": [CHAT_REPLY[1:3]]}, ("stop_sequence", CHAT_REPLY[1:3])),
        ({"stop_sequences": [CHAT_REPLY[1:3], "?"]}, ("stop_sequence", None)),
        ({"stop_sequences": ["?"]}, ("end_turn", None)),
    ],
    ids=["length", "stop", "stops", "end"],
)
def test_why_it_ended(scripted: Served, fields: dict[str, Any], expected: Any) -> None:
    whole = ask(scripted, **fields).json()
    assert (whole["stop_reason"], whole["stop_sequence"]) == expected
    streamed = scripted.stream(MESSAGES, {**HELLO, "max_tokens": 50, **fields, "stream": True})
    delta = next(each["delta"] for each in streamed if each["type"] == "message_delta")
    assert (delta["stop_reason"], delta["stop_sequence"]) == expected


def test_every_carrier_of_a_time_is_heard(scripted: Served) -> None:
    answers = [
        ask(scripted, within="7s"),
        ask(scripted, model="claude@7s"),
        scripted.post(f"/within/7s{MESSAGES}", HELLO),
        scripted.post(MESSAGES, HELLO, **{"X-Edge-Within": "7s"}),
    ]
    assert [answer.json()["edge"]["within_s"] for answer in answers] == [7.0] * 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "input": []}]}]},
         "messages[0].content[0].input"),
        ({"stop_sequences": 7}, "stop_sequences"),
        ({"thinking": {"type": "royal"}}, "thinking.type"),
        ({"system": {"a": 1}}, "system"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
         "output_config.format.schema"),
        ({"tool_choice": {"type": "royal"}}, "tool_choice.type"),
    ],
    ids=["none", "picture", "content", "input", "stops", "thinking", "system", "schema", "choice"],
)  # fmt: skip
def test_what_is_wrong_is_named_in_anthropics_form(
    scripted: Served, fields: dict[str, Any], param: str
) -> None:
    refused = ask(scripted, **fields)
    assert refused.status_code == 400
    error = refused.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert error["error"]["message"].startswith(param)


def test_a_time_that_is_too_short_is_a_status(heavy: Served) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 800}], "within": "1ms"}
    refused = heavy.post(MESSAGES, body)
    assert refused.status_code == 422 and refused.headers["x-should-retry"] == "false"
    assert refused.json()["edge"]["nearest_s"] > 0.001


def test_a_billing_header_is_no_part_of_the_prompt(scripted: Served) -> None:
    def count(*system: str) -> int:
        blocks = [{"type": "text", "text": text} for text in system]
        body = {**HELLO, "system": blocks}
        found: int = scripted.post(f"{MESSAGES}/count_tokens", body).json()["input_tokens"]
        return found

    head = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=a5145;"
    assert count(head, "be brief") == count(f"{head}be brief") == count("be brief") > count()


def test_blocks_of_tools_become_messages_of_tools() -> None:
    said = {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "warm", "input": {"at": "ž"}}]}  # fmt: skip
    result = {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "7"}]},
        {"type": "text", "text": "and now?"}]}  # fmt: skip
    found = [part for body in (said, result) for part in _read(RequestFields(body))]
    assert [part.text("role") for part in found] == ["assistant", "tool", "user"]
    assert [part.text("content") for part in found] == ["I look.", "7", "and now?"]
    call = {"id": "t1", "type": "function",
            "function": {"name": "warm", "arguments": '{"at":"ž"}'}}  # fmt: skip
    assert found[0].get("tool_calls") == [call] and found[1].text("tool_call_id") == "t1"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
    ids=["auto", "any", "none", "named"],
)
def test_a_choice_of_tools_keeps_its_meaning(choice: object, expected: object) -> None:
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
    body = {"tools": [tool, {"type": "web_search_20250305", "name": "w"}], "tool_choice": choice}
    found = _read_tools(RequestFields(body))
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert found.get("tools") == [{"type": "function", "function": function}]
    assert found.get("tool_choice") == expected


def test_thoughts_and_text_are_blocks_of_their_own() -> None:
    writer = MessagesWriter("m", Ask(GenerationConfig(), True))
    answer = Answer("b", "stop", 9, 4, 3, 0, 0.1, 9.0, 9.0, 0.5, thinking="a")
    ended = Ended(answer, None, 0.0)
    parts = [*writer.piece(TokenEvent(1, "", 0, thought="a")), *writer.piece(TokenEvent(2, "b", 1)),
             *writer.end(ended)]  # fmt: skip
    found = [json.loads(part.split(b"data: ")[1]) for part in parts]
    blocks = [each for each in found if each["type"].startswith("content_block")]
    assert [(each["type"][14:], each["index"]) for each in blocks] == [
        ("start", 0), ("delta", 0), ("stop", 0), ("start", 1), ("delta", 1), ("stop", 1),
    ]  # fmt: skip
    assert blocks[1]["delta"] == {"type": "thinking_delta", "thinking": "a"}
    assert [block["type"] for block in writer.whole("b", ended)["content"]] == ["thinking", "text"]
    failed = b"".join(writer.fail(RequestRefused(503, "the server is ending")))
    assert failed.startswith(b"event: error\n") and b"overloaded_error" in failed
    assert list(writer.ping()) == [b'event: ping\ndata: {"type":"ping"}\n\n']
