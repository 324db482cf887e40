"""Clients that bring many packages, each in a process of its own: anthropic, litellm, llm,
langchain, and the oldest openai that is still in use.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.edge.engines.engine_models import CHAT_REPLY, REPLY
from tests.edge.serve.conftest import Served
from tests.programs import skip_or_fail

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.xdist_group("serve")]

PROGRAM = Path(__file__).with_name("other_clients.py")


@pytest.fixture(scope="module")
def python() -> Path:
    found = os.environ.get("BOARDFIT_CLIENTS_PYTHON")
    if not found:
        skip_or_fail("BOARDFIT_CLIENTS_PYTHON is not set; scripts/test makes its environment")
    return Path(found)


def ask(python: Path, client: str, served: Served, home: Path, **environment: str) -> list[Any]:
    done = subprocess.run(
        [python, PROGRAM, client, served.url, served.model],
        capture_output=True,
        text=True,
        timeout=300,
        # Whatever a client would fetch or report elsewhere fails here.
        env={"HOME": str(home), "PATH": os.environ["PATH"], "LLM_USER_PATH": str(home / "llm"),
             "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1",
             "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
             **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("client", ["openai", "anthropic", "litellm", "llm", "langchain"])
def test_a_client_gets_its_answers(
    scripted: Served, python: Path, client: str, tmp_path: Path
) -> None:
    found = ask(python, client, scripted, tmp_path)
    assert len(found) >= 3 and set(found) == {CHAT_REPLY}


@pytest.mark.parametrize("client", ["call_llm", "call_langchain", "call_anthropic"])
def test_a_client_runs_its_tool_and_gets_the_answer(
    caller: Served, python: Path, client: str, tmp_path: Path
) -> None:
    found = ask(python, client, caller, tmp_path)
    assert len(found) >= 2 and set(found) == {REPLY}


@pytest.mark.parametrize("client", ["embed_openai", "embed_ollama"])
def test_a_client_gets_its_vectors(
    encoder: Served, python: Path, client: str, tmp_path: Path
) -> None:
    found = ask(python, client, encoder, tmp_path)
    expected = encoder.post("/v1/embeddings", {"input": "hello"}).json()["data"][0]["embedding"]
    assert len(found) == 3
    for vector in found:
        assert vector == pytest.approx(expected, abs=1e-7)


def test_lm_eval_leaves_the_cutting_into_tokens_to_the_server(
    scripted: Served, python: Path, tmp_path: Path
) -> None:
    assert ask(python, "lm_eval", scripted, tmp_path) == ["hello", "ž €"]


def test_the_oldest_openai_in_use_gets_its_answers(
    scripted: Served, python: Path, tmp_path: Path
) -> None:
    old = python.parent.parent / "openai-2.21"
    found = ask(python, "openai", scripted, tmp_path, PYTHONPATH=str(old))
    assert len(found) == 3 and set(found) == {CHAT_REPLY}
