"""Tools of published weights over HTTP: a model that knows no format of calls is held to one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.edge.serve.conftest import Served, serving
from tests.edge.serve.test_other_clients import python

__all__ = ["python"]
pytestmark = [pytest.mark.real, pytest.mark.engine, pytest.mark.slow,
              pytest.mark.xdist_group("serve")]  # fmt: skip

ROOMS = ["Kitchen Light", "Hall Light", "Desk Lamp"]


def tool(title: str, **properties: Any) -> Any:
    schema = {"type": "object", "properties": properties, "required": list(properties),
              "additionalProperties": False}  # fmt: skip
    return {"type": "function", "function": {"name": title, "parameters": schema}}


TOOLS = [
    tool("HassTurnOn", name={"type": "string", "enum": ROOMS}),
    tool("HassLightSet", name={"type": "string", "enum": ROOMS},
         brightness={"type": "integer", "minimum": 0, "maximum": 100}),
]  # fmt: skip
ASKED: Any = [{"role": "user", "content": "Turn on the kitchen light"}]
NAMED = {"type": "function", "function": {"name": "HassLightSet"}}


@pytest.fixture(scope="module")
def smollm2_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(smollm2, tmp_path_factory.mktemp("home"), ["--ctx", "2048"]) as served:
        yield served


def read_stream(client: openai.OpenAI, asked: dict[str, Any]) -> tuple[list[Any], str]:
    """Calls as (name, arguments), and how the stream finished."""
    calls, finish = list[Any](), ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        for part in choice.delta.tool_calls or []:
            calls.append((part.function.name, part.function.arguments))
        finish = choice.finish_reason or finish
    return calls, finish


@pytest.mark.parametrize(
    "choice", ["auto", "none", "required", NAMED], ids=["auto", "none", "required", "named"]
)
def test_openai_gets_what_the_choice_says(smollm2_server: Served, choice: Any) -> None:
    client = openai.OpenAI(base_url=f"{smollm2_server.url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {
        "model": "x", "messages": ASKED, "tools": TOOLS, "tool_choice": choice, "temperature": 0,
        "max_tokens": 60,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    calls = [(c.function.name, c.function.arguments) for c in whole.message.tool_calls or []]
    assert read_stream(client, asked) == (calls, whole.finish_reason)
    if choice == "none":
        assert calls == [] and whole.message.content
    elif choice != "auto":
        assert whole.finish_reason == "tool_calls" and calls
    for name, text in calls:
        arguments = json.loads(text)
        if choice == "auto":  # free: it may name what it likes
            continue
        assert (
            name in ("HassLightSet",) if choice == NAMED else name in ("HassTurnOn", "HassLightSet")
        )
        assert arguments["name"] in ROOMS and set(arguments) <= {"name", "brightness"}
        assert ("brightness" in arguments) == (name == "HassLightSet")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_anthropics_any_calls_one(smollm2_server: Served, stream: bool) -> None:
    tools = [
        {"name": each["function"]["name"], "input_schema": each["function"]["parameters"]}
        for each in TOOLS
    ]
    body = {"messages": ASKED, "tools": tools, "tool_choice": {"type": "any"}, "max_tokens": 60,
            "temperature": 0, "stream": stream}  # fmt: skip
    if not stream:
        found = smollm2_server.post("/v1/messages", body).json()
        assert found["stop_reason"] == "tool_use"
        assert found["content"][-1]["input"]["name"] in ROOMS
        return
    events = smollm2_server.stream("/v1/messages", body)
    parts = [each["delta"].get("partial_json", "") for each in events if "delta" in each]
    assert json.loads("".join(parts))["name"] in ROOMS
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_ollama_is_held_to_a_schema(smollm2_server: Served) -> None:
    schema = TOOLS[1]["function"]["parameters"]
    body = {"messages": ASKED, "format": schema, "stream": False, "options": {"temperature": 0}}
    found = json.loads(smollm2_server.post("/api/chat", body).json()["message"]["content"])
    assert found["name"] in ROOMS and 0 <= found["brightness"] <= 100


def test_llm_is_held_to_a_schema(smollm2_server: Served, python: Path, tmp_path: Path) -> None:
    program = python.with_name("llm")
    done = subprocess.run(
        [program, "openai", "endpoint", f"{smollm2_server.url}/v1", "-m", smollm2_server.model,
         "--schema", "name, brightness int", "Dim the hall light", "-o", "temperature", "0"],
        capture_output=True, text=True, timeout=120,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LLM_USER_PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found["name"], str) and isinstance(found["brightness"], int)
