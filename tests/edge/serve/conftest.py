"""Servers as a user starts them, with tiny models: `edge serve MODEL --port 0 --json`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.edge.engines import tiny_gguf
from tests.edge.engines.conftest import engine_models, engine_name, model_shelf, models
from tests.edge.engines.engine_models import REPLY, Models

__all__ = ["engine_models", "engine_name", "model_shelf", "models"]

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    model: str
    client: httpx.Client
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return self.client.post(path, json=body, headers=headers)

    def ask(self, text: str = "hello", **fields: object) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return self.post("/v1/chat/completions", body)

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The JSON of every event or line of a streamed answer."""
        with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200, response.read()
            lines = [line.removeprefix("data: ") for line in response.iter_lines()]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = self.client.get("/edge/v1/status").json()["requests"]
        return found


@contextmanager
def serving(model: Path, home: Path, options: Sequence[str] = ()) -> Iterator[Served]:
    """A server of a model; it has to end by itself when it is told to."""
    home.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(home), "XDG_CONFIG_HOME": str(home), "XDG_STATE_HOME": str(home),
        "BOARDFIT_STATES": "off",
    }  # fmt: skip
    command = [sys.executable, "-m", "boardfit", "serve", str(model), "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--threads", "1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    record = json.loads(line)
    with httpx.Client(base_url=record["url"], timeout=60) as client:
        yield Served(record["url"], record["model"], client, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def scripted(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Answers each question with CHAT_REPLY."""
    with serving(models.scripted, tmp_path_factory.mktemp("home")) as served:
        yield served


#: Lists tools, writes calls, and ends in x where the result of one is to be answered.
_TOOL_TEMPLATE = (
    "{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant"
    "{% if messages[-1].role == 'tool' %} x{% else %}\n{% endif %}{% endif %}"
)


@contextmanager
def calling(folder: Path, name: str, arguments: dict[str, Any]) -> Iterator[Served]:
    """A server whose model answers a question with one call, and the call's result with REPLY."""
    call = json.dumps({"name": name, "arguments": arguments})
    pad, end = tiny_gguf.PAD, tiny_gguf.IM_END
    successors = {ord("\n"): pad, pad: end, **tiny_gguf.script(REPLY, after=ord("x"), then=end)}
    model = tiny_gguf.scripted_llama(
        folder / "caller.gguf", successors, n_ctx=4096, template=_TOOL_TEMPLATE,
        pad=f"<tool_call>\n{call}\n</tool_call>",
    )  # fmt: skip
    with serving(model, folder / "home") as served:
        yield served


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Calls llm_version, a tool that llm has of its own, then answers REPLY."""
    with calling(tmp_path_factory.mktemp("caller"), "llm_version", {}) as served:
        yield served


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Makes vectors."""
    folder = tmp_path_factory.mktemp("encoder")
    with serving(tiny_gguf.random_bert(folder / "encoder.gguf"), folder / "home") as served:
        yield served


@pytest.fixture(scope="module")
def endless(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Counts and never ends."""
    assert models.endless is not None
    options = ["--ctx", "16384", "--slots", "1"]  # one answers, others wait
    with serving(models.endless, tmp_path_factory.mktemp("home"), options) as served:
        yield served


@pytest.fixture(scope="module")
def heavy(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Takes seconds over a long prompt."""
    with serving(models.heavy, tmp_path_factory.mktemp("home")) as served:
        yield served
