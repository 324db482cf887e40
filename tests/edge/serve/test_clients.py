"""Clients that nobody here wrote: openai, ollama."""

from __future__ import annotations

import asyncio

import ollama
import openai
import pytest

from tests.edge.engines.engine_models import CHAT_REPLY
from tests.edge.serve.conftest import Served

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]


@pytest.fixture
def client(scripted: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=2)


def test_openai_chat(client: openai.OpenAI, scripted: Served) -> None:
    assert next(iter(client.models.list())).id == scripted.model
    answer = client.chat.completions.create(
        model=scripted.model, messages=[{"role": "user", "content": "hello"}]
    )
    assert answer.choices[0].message.content == CHAT_REPLY
    stream = client.chat.completions.create(
        model=scripted.model,
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"within": "5s"},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == CHAT_REPLY
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0
    assert chunks[-1].model_extra is not None and chunks[-1].model_extra["edge"]["met"] is True


def test_openai_completions_and_responses(client: openai.OpenAI, scripted: Served) -> None:
    text = client.completions.create(model=scripted.model, prompt="x", max_tokens=20)
    assert text.choices[0].finish_reason == "stop"
    answer = client.responses.create(model=scripted.model, input="hello")
    assert answer.output_text == CHAT_REPLY and answer.status == "completed"
    with client.responses.stream(model=scripted.model, input="hello") as stream:
        final = stream.get_final_response() if list(stream) else None
    assert final is not None and final.output_text == CHAT_REPLY


def test_openai_does_not_retry_what_no_retry_helps(heavy: Served) -> None:
    client = openai.OpenAI(base_url=f"{heavy.url}/v1", api_key="none", max_retries=5)
    before = heavy.client.get("/metrics").text.count('status="422"')
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(
            model="x",
            messages=[{"role": "user", "content": "word " * 800}],
            extra_headers={"X-Edge-Within": "1ms"},
        )
    assert refused.value.body is not None and before == 0
    counted = [line for line in heavy.client.get("/metrics").text.splitlines() if '="422"' in line]
    assert counted[0].endswith(" 1"), counted


def test_ollama_calls(scripted: Served) -> None:
    client = ollama.Client(scripted.url)
    names = [model.model for model in client.list().models]
    assert f"{scripted.model}:latest" in names
    messages = [{"role": "user", "content": "hello"}]
    assert client.chat(scripted.model, messages).message.content == CHAT_REPLY
    parts = list(client.chat(scripted.model, messages, stream=True, think=False, keep_alive="5m"))
    assert "".join(part.message.content or "" for part in parts) == CHAT_REPLY
    assert parts[-1].done_reason == "stop"
    assert client.generate(scripted.model, "hello").response == CHAT_REPLY
    assert client.ps().models[0].model == f"{scripted.model}:latest"
    assert client.show(scripted.model).capabilities == ["completion"]
    with pytest.raises(ollama.ResponseError) as refused:
        client.chat(scripted.model, [{"role": "user", "content": ""}])
    assert refused.value.status_code == 400


def test_clients_at_once_get_their_own_answers(scripted: Served) -> None:
    async def main() -> list[str | None]:
        client = openai.AsyncOpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0)
        asks = [
            client.chat.completions.create(
                model="x", messages=[{"role": "user", "content": f"hello {i}"}]
            )
            for i in range(8)
        ]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*asks)]

    assert asyncio.run(main()) == [CHAT_REPLY] * 8
