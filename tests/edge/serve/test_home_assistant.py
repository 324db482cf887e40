"""What Home Assistant's integrations llama_cpp and ollama ask, read by the rules of their parsers.

The calls were learned from home-assistant/core (components/llama_cpp and components/ollama). They
go through the same clients, openai and ollama. Nothing of that code is here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import ollama
import openai
import pytest

from tests.edge.engines.engine_models import CHAT_REPLY, REPLY
from tests.edge.serve.conftest import Served, calling

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]

#: Home Assistant offers tools in its first question already, and always after.
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "HassTurnOn",
            "description": "Turns a device on",
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
        },
    }
]
SYSTEM = {"role": "system", "content": "Current time is 20:37:19. You control a home."}
USER = {"role": "user", "content": "hello"}


def client_of(served: Served, prefix: str = "") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="sk-0000", base_url=f"{served.url}{prefix}/v1", max_retries=0)


async def read_stream(chunks: AsyncIterator[Any]) -> tuple[list[str], str]:
    """Roles and text, as llama_cpp reads a stream: what comes with or after the first
    `finish_reason` is never looked at, and a role counts only as "assistant" in a chunk without
    calls.
    """
    roles, text = list[str](), ""
    async for chunk in chunks:
        if not chunk.choices:
            continue
        choice = chunk.choices[0]
        if choice.finish_reason:
            break
        assert not choice.delta.tool_calls
        roles += [choice.delta.role] if choice.delta.role == "assistant" and not roles else []
        text += choice.delta.content or ""
    return roles, text


def test_llama_cpp_is_set_up(scripted: Served) -> None:
    """The models are listed, then the first one is tried with three tokens, whole and streamed."""

    async def set_up() -> list[str]:
        client = client_of(scripted)
        models = [each.id async for each in await client.with_options(timeout=10).models.list()]
        trial: dict[str, Any] = {
            "model": models[0],
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "What is the capital of France?"},
            ],
            "tools": TOOLS,
            "max_tokens": 3,
        }
        whole = await client.chat.completions.create(**trial, stream=False)
        finishes = [whole.choices[0].finish_reason]
        async for event in await client.chat.completions.create(**trial, stream=True):
            finishes += [each.finish_reason for each in event.choices if each.finish_reason]
        return [*models, *finishes]

    found = asyncio.run(set_up())
    assert found[0] == scripted.model and found[-2:] == ["length", "length"]


@pytest.mark.parametrize("prefix", ["", "/within/20s"])
def test_llama_cpp_converses(scripted: Served, prefix: str) -> None:
    async def converse(stream: bool) -> tuple[list[str], str]:
        client, messages = client_of(scripted, prefix), [SYSTEM, USER]
        for _ in range(2):
            result = await client.chat.completions.create(
                messages=messages,  # type: ignore[arg-type]
                model=scripted.model,
                tools=TOOLS,
                max_tokens=3000,
                top_p=1.0,
                temperature=1.0,
                user="01JDX",
                stream=stream,
            )
            if stream:
                roles, text = await read_stream(result)
            else:
                message = result.choices[0].message
                assert not message.tool_calls
                roles, text = [message.role], message.content
            messages += [{"role": "assistant", "content": text}, USER]
        return roles, text

    assert asyncio.run(converse(stream=True)) == (["assistant"], CHAT_REPLY)
    assert asyncio.run(converse(stream=False)) == (["assistant"], CHAT_REPLY)


def test_llama_cpp_shows_the_message_of_an_error(scripted: Served) -> None:
    async def ask() -> None:
        await client_of(scripted).chat.completions.create(
            model=scripted.model,
            messages=[USER],  # type: ignore[list-item]
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"not": {}}},
            },
        )

    with pytest.raises(openai.BadRequestError) as refused:
        asyncio.run(ask())
    shown = refused.value.response.json()["error"]["message"]
    assert "Unimplemented keys" in shown and "response_format" in shown


@pytest.mark.parametrize(
    "settings",
    [
        {"keep_alive": -1, "options": {"num_ctx": 8192}, "think": None},
        {"keep_alive": "30s", "options": {"num_ctx": 8192}, "think": False},
        {"keep_alive": "0s", "options": {"num_ctx": 2048}, "think": True, "format": ""},
    ],
    ids=["forever", "short", "thinking"],
)
def test_ollama_converses(scripted: Served, settings: dict[str, Any]) -> None:
    async def converse() -> tuple[str, list[Any]]:
        client, text, calls = ollama.AsyncClient(host=scripted.url), "", list[Any]()
        listed = {each["model"] for each in (await client.list())["models"]}
        model = f"{scripted.model}:latest"
        assert model in listed, "else Home Assistant would pull it"
        messages = [
            ollama.Message(role="system", content=SYSTEM["content"]),
            ollama.Message(role="user", content="hello"),
            ollama.Message(role="assistant", content="yes", thinking=None, tool_calls=None),
            ollama.Message(role="user", content="hello", images=None),
        ]
        async for response in await client.chat(
            model=model, messages=messages, tools=TOOLS, stream=True, **settings
        ):
            message = response["message"]
            calls += message.get("tool_calls") or []
            text += message.get("content") or ""
        assert response["done"] and response["done_reason"] == "stop"
        return text, calls

    assert asyncio.run(converse()) == (CHAT_REPLY, [])


def test_a_context_that_ollamas_clients_set_is_noted(scripted: Served) -> None:
    body = {"messages": [USER], "options": {"num_ctx": 8192}, "stream": False}
    notes = scripted.post("/api/chat", body).json()["edge"]["notes"]
    assert notes == ["num_ctx is not applied: edge serve --ctx sets the context"]


def test_ollama_looks_on_while_an_answer_is_computed(endless: Served) -> None:
    """It asks for models and for what is loaded every 30 seconds, and waits 5."""

    async def look() -> list[str]:
        client = ollama.AsyncClient(host=endless.url)
        hello = [{"role": "user", "content": "hello"}]
        answer = await client.chat(endless.model, hello, stream=True)
        await answer.__anext__()
        running = await asyncio.wait_for(client.ps(), 5)
        listed = await asyncio.wait_for(client.list(), 5)
        await answer.aclose()
        return [str(running.models[0].model), str(listed.models[0].model)]

    assert asyncio.run(look()) == [f"{endless.model}:latest"] * 2


def test_tools_that_the_template_does_not_list_are_noted(scripted: Served) -> None:
    noted = scripted.ask(tools=TOOLS).json()["edge"]["notes"]
    assert noted == ["the template lists no tools: the system prompt does"]
    assert "notes" not in scripted.ask(tools=TOOLS, tool_choice="none").json()["edge"]
    for choice in ("required", {"type": "function", "function": {"name": "HassTurnOn"}}):
        called = scripted.ask(tools=TOOLS, tool_choice=choice, max_tokens=200).json()["choices"][0]
        [call] = called["message"]["tool_calls"]
        assert called["finish_reason"] == "tool_calls"
        assert call["function"]["name"] == "HassTurnOn"
        assert set(json.loads(call["function"]["arguments"])) <= {"name"}


ARGUMENTS = {"name": "Kitchen Light"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Turns the kitchen light on, and says so once it is."""
    with calling(tmp_path_factory.mktemp("home"), "HassTurnOn", ARGUMENTS) as served:
        yield served


async def read_calls(chunks: AsyncIterator[Any]) -> tuple[str, list[dict[str, Any]]]:
    """Text and calls as llama_cpp reads a stream: the first call of each chunk, a new one where it
    has an id; arguments are JSON once the stream ends.
    """
    text, calls = "", list[dict[str, Any]]()
    async for chunk in chunks:
        choice = chunk.choices[0]
        if choice.finish_reason:
            break
        text += choice.delta.content or ""
        for part in (choice.delta.tool_calls or [])[:1]:
            if part.id:
                calls.append({"id": part.id, "name": part.function.name, "arguments": ""})
            calls[-1]["arguments"] += part.function.arguments or ""
    return text, [{**call, "arguments": json.loads(call["arguments"])} for call in calls]


@pytest.mark.parametrize("prefix", ["", "/within/20s"], ids=["plain", "timed"])
def test_llama_cpp_controls_a_home(home: Served, prefix: str) -> None:
    async def control() -> str:
        client, messages = client_of(home, prefix), list[Any]([SYSTEM, USER])
        for _ in range(10):
            asked: Any = {"messages": messages, "model": home.model, "tools": TOOLS}
            chunks = await client.chat.completions.create(**asked, stream=True, max_tokens=3000)
            text, calls = await read_calls(chunks)
            if not calls:
                return text
            assert [(call["name"], call["arguments"]) for call in calls] == [
                ("HassTurnOn", ARGUMENTS)
            ]
            written = [
                {"type": "function", "id": call["id"], "function": {
                    "name": call["name"], "arguments": json.dumps(call["arguments"])}}
                for call in calls
            ]  # fmt: skip
            messages.append({"role": "assistant", "content": None, "tool_calls": written})
            result = json.dumps({"speech": {}, "response_type": "action_done"})
            messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": result})
        raise AssertionError("it calls for ever")

    assert asyncio.run(control()) == REPLY


def test_ollama_controls_a_home(home: Served) -> None:
    """Results carry no id and no name of the call."""

    async def control() -> list[str]:
        client, texts = ollama.AsyncClient(host=home.url), list[str]()
        messages = [ollama.Message(**SYSTEM), ollama.Message(**USER)]
        for _ in range(2):
            text, calls = "", list[Any]()
            async for response in await client.chat(
                model=f"{home.model}:latest", messages=messages, tools=TOOLS, stream=True,
                keep_alive=-1, options={"num_ctx": 8192},
            ):  # fmt: skip
                calls += response["message"].get("tool_calls") or []
                text += response["message"].get("content") or ""
            texts.append(text or str(calls[0].function.arguments))
            messages.append(ollama.Message(role="assistant", content=text, tool_calls=calls))
            messages.append(ollama.Message(role="tool", content='{"success": true}'))
        return texts

    assert asyncio.run(control()) == [str(ARGUMENTS), REPLY]
