"""Calls of tools over every wire, by a model that answers each question with one call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import openai
import pytest

from boardfit.edge.serve.ask import Carried, Defaults, read_messages, read_tools
from boardfit.edge.serve.body import RequestFields
from boardfit.edge.serve.refused import RequestRefused
from boardfit.edge.serve.wire.responses import read_responses
from boardfit.edge.template.tool_grammar import MAX_CALLS
from boardfit.edge.types import ToolCall
from tests.edge.engines import tiny_gguf
from tests.edge.serve.conftest import Served, serving

serve = [pytest.mark.engine, pytest.mark.xdist_group("serve")]

CHAT = "/v1/chat/completions"
ARGUMENTS = {"zone": "UTC", "exact": True}
WIRE = f'<tool_call>\n{{"name": "get_time", "arguments": {json.dumps(ARGUMENTS)}}}\n</tool_call>'
TEMPLATE = (
    "{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FUNCTION = {
    "name": "get_time",
    "description": "Tells the time",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "string"}, "exact": {"type": "boolean"}},
    },
}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
ROOMS = ["hall", "café", 'the "old" one']
LAMP: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "set_lamp",
        "description": "Sets a lamp",
        "parameters": {
            "type": "object",
            "required": ["room"],
            "properties": {"room": {"type": "string", "enum": ROOMS}, "on": {"type": "boolean"}},
        },
    },
}
ASKED: dict[str, Any] = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Answers each question with one call: one token holds all of it."""
    folder = tmp_path_factory.mktemp("caller")
    pad = tiny_gguf.PAD
    model = tiny_gguf.scripted_llama(
        folder / "caller.gguf", {10: pad, pad: tiny_gguf.IM_END}, template=TEMPLATE, pad=WIRE
    )
    with serving(model, folder / "home") as served:
        yield served


class TestServed:
    """Against a running server."""

    pytestmark = serve

    def test_a_call_is_whole_and_the_text_is_none(self, caller: Served) -> None:
        found = caller.ask(tools=TOOLS).json()["choices"][0]
        assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
        [call] = found["message"]["tool_calls"]
        assert call["type"] == "function" and call["function"]["name"] == "get_time"
        assert json.loads(call["function"]["arguments"]) == ARGUMENTS
        assert "notes" not in caller.ask(tools=TOOLS).json()["edge"]

    def test_a_streamed_call_has_its_name_once(self, caller: Served) -> None:
        body = {"messages": [ASKED], "tools": TOOLS, "stream": True}
        chunks = [chunk["choices"][0] for chunk in caller.stream(CHAT, body)]
        calls = [c["delta"]["tool_calls"] for c in chunks if "tool_calls" in c["delta"]]
        [[call]] = calls
        assert call["index"] == 0 and call["id"] and call["function"]["name"] == "get_time"
        assert not any(chunk["delta"].get("content") for chunk in chunks)
        assert chunks[-1]["finish_reason"] == "tool_calls" and chunks[-1]["delta"] == {}

    def test_the_status_shows_how_calls_are_written(self, caller: Served) -> None:
        found = caller.client.get("/edge/v1/status").json()["tools"]
        assert (found["syntax"], found["start"], found["proof"]) == (
            "json", "<tool_call>\n", "template",
        )  # fmt: skip

    def test_a_form_of_the_answer_leaves_no_room_for_calls(self, caller: Served) -> None:
        form = {"type": "json_schema", "json_schema": {"schema": {"enum": [1]}}}
        found = caller.ask(tools=TOOLS, response_format=form).json()
        assert found["choices"][0]["message"]["content"] == "1"
        assert "no tool can be called" in found["edge"]["notes"][0]

    def test_a_call_that_is_cut_is_length(self, caller: Served) -> None:
        found = caller.ask(tools=TOOLS, max_tokens=1).json()["choices"][0]
        assert found["finish_reason"] == "length"

    @pytest.mark.parametrize("tools", [None, "none"])
    def test_without_tools_the_text_stays_text(self, caller: Served, tools: str | None) -> None:
        fields = {"tools": TOOLS, "tool_choice": "none"} if tools else {}
        found = caller.ask(**fields).json()["choices"][0]
        assert found["message"]["content"] == WIRE and found["finish_reason"] == "stop"
        assert "tool_calls" not in found["message"]

    def test_openai_converses(self, caller: Served) -> None:
        client = openai.OpenAI(api_key="sk-0000", base_url=f"{caller.url}/v1", max_retries=0)
        messages: list[Any] = [ASKED]
        for _ in range(2):
            answer = client.chat.completions.create(
                model=caller.model, messages=messages, tools=TOOLS
            ).choices[0]
            [call] = answer.message.tool_calls or []
            messages.append(answer.message.model_dump(exclude_none=True))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "20:37"})
        assert answer.finish_reason == "tool_calls"
        with client.responses.stream(
            model=caller.model, input="hello", tools=[{"type": "function", **FUNCTION}]
        ) as stream:
            kinds = [event.type for event in stream]
            [item] = stream.get_final_response().output
        assert item.type == "function_call" and json.loads(item.arguments) == ARGUMENTS
        assert kinds.count("response.output_item.done") == 1
        output = {"type": "function_call_output", "call_id": item.call_id, "output": "20:37"}
        again: Any = client.responses.create(
            model=caller.model,
            input=[ASKED, item.model_dump(), output],  # type: ignore[list-item]
            tools=[{"type": "function", **FUNCTION}],  # type: ignore[list-item]
        )
        assert again.output[0].name == "get_time" and again.status == "completed"

    def test_ollama_converses(self, caller: Served) -> None:
        client = ollama.Client(host=caller.url)
        assert "tools" in client.show(f"{caller.model}:latest").capabilities
        messages: list[Any] = [ASKED]
        for stream in (True, False):
            if stream:
                parts = list(client.chat(caller.model, messages, tools=TOOLS, stream=True))
            else:
                parts = [client.chat(caller.model, messages, tools=TOOLS)]
            calls = [call for part in parts for call in part.message.tool_calls or []]
            assert [call.function.arguments for call in calls] == [ARGUMENTS]
            assert parts[-1].done_reason == "stop"
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            messages.append({"role": "tool", "content": "20:37", "tool_name": "get_time"})

    def test_anthropic_gets_blocks(self, caller: Served) -> None:
        tool = {"name": "get_time", "input_schema": FUNCTION["parameters"]}
        body = {"max_tokens": 9, "messages": [ASKED], "tools": [tool]}
        whole = caller.post("/v1/messages", body).json()
        assert whole["stop_reason"] == "tool_use"
        [block] = whole["content"]
        assert block["type"] == "tool_use" and block["input"] == ARGUMENTS
        events = caller.stream("/v1/messages", {**body, "stream": True})
        kinds = [event["type"] for event in events if event["type"].startswith("content_block")]
        assert kinds == [f"content_block_{word}" for word in ("start", "delta", "stop")]
        [delta] = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        assert json.loads(delta["partial_json"]) == ARGUMENTS

    def test_a_limit_of_time_holds_with_tools(self, caller: Served) -> None:
        found = caller.ask(tools=TOOLS, within="30s").json()
        assert found["choices"][0]["message"]["tool_calls"] and found["edge"]["met"]


class TestHeld:
    """A model that writes nothing but the marker of a call, held to the tools from there."""

    pytestmark = serve

    @pytest.fixture(scope="class")
    def marker(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
        folder, pad = tmp_path_factory.mktemp("marker"), tiny_gguf.PAD
        model = tiny_gguf.scripted_llama(
            folder / "marker.gguf", {10: pad}, template=TEMPLATE, pad="<tool_call>"
        )
        with serving(model, folder / "home") as served:
            yield served

    @staticmethod
    def call(served: Served, **fields: Any) -> tuple[str, dict[str, Any]]:
        found = served.ask(**fields).json()["choices"][0]
        assert found["finish_reason"] == "tool_calls", found
        [call] = found["message"]["tool_calls"]
        return call["function"]["name"], json.loads(call["function"]["arguments"])

    @pytest.mark.parametrize("choice", ["auto", "required", "named"])
    def test_arguments_fit_the_schema(self, marker: Served, choice: str) -> None:
        named = {"type": "function", "function": {"name": "set_lamp"}}
        name, values = self.call(
            marker,
            tools=[*TOOLS, LAMP],
            tool_choice=named if choice == "named" else choice,
            parallel_tool_calls=False,
            max_tokens=300,
        )
        if choice == "named":
            assert name == "set_lamp"
        if name == "set_lamp":
            assert values["room"] in ROOMS and set(values) <= {"room", "on"}
            assert type(values.get("on", True)) is bool
        else:
            assert name == "get_time" and set(values) <= {"zone", "exact"}

    def test_three_tokens_are_answered_too(self, marker: Served) -> None:
        """Home Assistant tries a model so, with tools on offer."""
        for stream in (False, True):
            assert marker.ask(tools=TOOLS, max_tokens=3, stream=stream).status_code == 200
        refused = marker.ask(tools=TOOLS, max_tokens=3, tool_choice="required")
        assert refused.status_code == 400 and "shortest answer" in refused.text

    def test_a_schema_that_cannot_be_enforced(self, marker: Served) -> None:
        """Is refused where a call must come, and noted where one may."""
        odd = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
        tools = [{"type": "function", "function": {"name": "f", "parameters": odd}}]
        noted = marker.ask(tools=tools, max_tokens=9).json()["edge"]["notes"]
        assert "uniqueItems" in noted[0] and noted[0].startswith("calls are not held")
        refused = marker.ask(tools=tools, tool_choice="required")
        assert refused.status_code == 400 and "uniqueItems" in refused.text

    def test_a_limit_of_time_holds(self, marker: Served) -> None:
        found = marker.ask(tools=[LAMP], tool_choice="required", within="20s").json()
        assert len(found["choices"][0]["message"]["tool_calls"]) == MAX_CALLS, "it repeats itself"
        assert found["edge"]["met"] and found["choices"][0]["finish_reason"] == "tool_calls"


# ---- reading requests ---------------------------------------------------------------------------


def messages_of(*bodies: dict[str, Any]) -> Any:
    return read_messages([RequestFields(body, f"messages[{i}].") for i, body in enumerate(bodies)])


def call_of(arguments: Any, **rest: Any) -> dict[str, Any]:
    called = {"function": {"name": "f", "arguments": arguments}, **rest}
    return {"role": "assistant", "content": None, "tool_calls": [called]}


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}], ids=["text", "object"])
def test_past_calls_are_read(arguments: Any) -> None:
    result = {"role": "tool", "content": None, "tool_call_id": None}
    (_, called, got), notes = messages_of(ASKED, call_of(arguments, id=None), result)
    assert called.calls == (ToolCall("f", '{"a": 1}', ""),) and called.content == ""
    assert (got.role, got.content, got.call_id, notes) == ("tool", "", "", ())


def test_calls_of_neighbours_are_one_turn() -> None:
    result = {"role": "tool", "content": "x"}
    (_, called, *_), notes = messages_of(ASKED, call_of("{}"), call_of(None), result)
    assert len(called.calls) == 2 and notes == ()


@pytest.mark.parametrize(
    "bodies",
    [
        [ASKED, call_of("[1]"), {"role": "tool"}],
        [ASKED, call_of("{"), {"role": "tool"}],
        [ASKED, call_of('{"a":' * 500 + "1" + "}" * 500), {"role": "tool"}],
        [ASKED, call_of("{}")],
        [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "a b"}}]}],
        [ASKED, {"role": "tool", "tool_call_id": 5}],
    ],
    ids=["array", "broken", "deep", "last", "name", "id"],
)
def test_odd_calls_are_refused_by_name(bodies: list[dict[str, Any]]) -> None:
    with pytest.raises(RequestRefused) as refused:
        messages_of(*bodies)
    assert refused.value.status == 400 and (refused.value.param or "").startswith("messages")


def read(**fields: Any) -> dict[str, Any]:
    return read_tools(RequestFields(fields))


def test_a_choice_is_honoured_or_refused() -> None:
    assert read(tools=TOOLS)["tool_choice"] == "auto"
    named = {"type": "function", "function": {"name": "get_time"}}
    assert read(tools=TOOLS, tool_choice=named)["tool_choice"] == "get_time"
    assert read(tools=TOOLS, tool_choice={"type": "function", "name": "get_time"})[
        "tool_choice"] == "get_time"  # fmt: skip
    for choice in ({"type": "function", "function": {"name": "other"}}, "any", 5, {"type": "x"}):
        with pytest.raises(RequestRefused, match="tool_choice"):
            read(tools=TOOLS, tool_choice=choice)
    with pytest.raises(RequestRefused, match="required needs tools"):
        read(tool_choice="required")


@pytest.mark.parametrize(
    "function",
    [{"name": ""}, {"name": "a b"}, {"name": "f" * 200}, {"name": "f", "parameters": []},
     {"name": "f", "description": 5}, {"name": "f", "parameters": {"a": [[[[{}]]]] * 3}}],
    ids=["empty", "space", "long", "array", "number", "fine"],
)  # fmt: skip
def test_odd_tools_are_refused(function: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if request.node.callspec.id == "fine":
        assert len(read(tools=[{"function": function}])["tools"]) == 1
        return
    with pytest.raises(RequestRefused, match=r"tools\[0\]"):
        read(tools=[{"function": function}])


def test_a_schema_that_nests_deeply_or_is_long_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"properties": deep}
    wide = {"enum": list(range(20_000))}
    for schema in (deep, wide):
        with pytest.raises(RequestRefused, match="nested more than 32 deep, or more than 4096"):
            read(tools=[{"function": {"name": "f", "parameters": schema}}])


def test_items_of_responses_become_messages() -> None:
    body = {"input": [
        {"role": "user", "content": "hello"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "x", "output": "20:37"},
    ]}  # fmt: skip
    ask = read_responses(RequestFields(body), Carried(), Defaults())
    assert [message.role for message in ask.messages] == ["user", "assistant", "tool"]
    assert ask.uses_tools and ask.question.call_id == "x"
