"""Vectors of an embedding model over HTTP."""

from __future__ import annotations

import base64
import json
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.edge.serve.vectors import makes_vectors
from tests.edge.engines import tiny_gguf
from tests.edge.engines.engine_models import Models
from tests.edge.serve.conftest import HELLO, Served

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]

OPENAI, OLLAMA = "/v1/embeddings", "/api/embed"


def vectors(served: Served, **fields: object) -> list[Any]:
    answer = served.post(OPENAI, fields)
    assert answer.status_code == 200, answer.text
    return [each["embedding"] for each in answer.json()["data"]]


def test_one_text_or_many_have_their_vectors(encoder: Served) -> None:
    one, (a, b) = vectors(encoder, input="hello"), vectors(encoder, input=["hello", "there"])
    assert one == [a] and a != b
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
    answer = encoder.post(OPENAI, {"input": ["hello", "there"], "model": "x"}).json()
    assert [each["index"] for each in answer["data"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] > 5 and answer["model"] == encoder.model
    (packed,) = vectors(encoder, input="hello", encoding_format="base64")
    assert array("f", base64.b64decode(packed)).tolist() == pytest.approx(a, abs=1e-7)


def test_ollamas_vectors_are_the_same(encoder: Served) -> None:
    answer = encoder.post(OLLAMA, {"model": encoder.model, "input": "hello"}).json()
    assert answer["embeddings"] == vectors(encoder, input="hello")
    assert answer["prompt_eval_count"] > 0 and type(answer["total_duration"]) is int
    assert encoder.post(OLLAMA, {"model": encoder.model}).json()["embeddings"] == []
    shown = encoder.post("/api/show", {"model": encoder.model}).json()
    assert shown["capabilities"] == ["embedding"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": " "}, "the text is empty"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1]]}, "input"),
        ({"input": "a", "dimensions": 7}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x" * 5000}, "the text has 5"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "within": "soon"}, "within"),
    ],
    ids=["absent", "empty", "one", "blank", "tokens", "lists", "size", "form", "long", "many",
         "time"],
)  # fmt: skip
def test_what_is_wrong_is_named(encoder: Served, fields: dict[str, Any], param: str) -> None:
    refused = encoder.post(OPENAI, fields)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["message"].startswith(param)


def test_a_time_is_kept_or_refused(encoder: Served) -> None:
    kept = encoder.post(f"/within/50s{OPENAI}", {"input": "hello"}).json()["edge"]
    assert kept["within_s"] == 50 and kept["met"] is True
    body = {"input": ["hello " * 8] * 500, "within": 0.000001}
    for path in (OPENAI, OLLAMA):
        refused = encoder.post(path, body)
        assert refused.status_code == 422 and refused.headers["x-should-retry"] == "false"
    assert "1e-06 s are allowed" in refused.json()["error"]
    best = encoder.post(OPENAI, {**body, "input": "hello", "on_miss": "best"})
    assert best.json()["edge"]["met"] is False


def test_an_embedding_model_gives_no_text_and_says_what_it_gives(encoder: Served) -> None:
    for path, body in (
        ("/v1/chat/completions", HELLO), ("/v1/messages", HELLO), ("/edge/v1/predict", HELLO),
        ("/v1/completions", {"prompt": "x"}), ("/v1/messages/count_tokens", HELLO),
    ):  # fmt: skip
        refused = encoder.post(path, body)
        assert refused.status_code == 400 and "/v1/embeddings" in refused.text, path
    assert "/v1/embeddings" in encoder.post("/tokenize", {"content": "a"}).text
    for path in ("/v1/models", "/api/tags", "/api/ps", "/props", "/slots", "/edge/v1/status",
                 "/ready", "/metrics"):  # fmt: skip
        assert encoder.client.get(path).status_code == 200, path


def test_a_model_of_text_makes_no_vectors(scripted: Served) -> None:
    for path in (OPENAI, OLLAMA):
        refused = scripted.post(path, {"input": "hello"})
        assert refused.status_code == 400 and "serve an embedding model" in refused.text


def test_what_cannot_be_read_is_no_embedding_model(models: Models, tmp_path: Path) -> None:
    assert makes_vectors(tiny_gguf.random_bert(tmp_path / "encoder.gguf"))
    assert not makes_vectors(models.scripted)
    assert not makes_vectors(tmp_path) and not makes_vectors(tmp_path / "gone.gguf")


def test_a_client_that_goes_ends_its_vectors(encoder: Served) -> None:
    def count_tokens() -> str:
        lines = encoder.client.get("/metrics").text.splitlines()
        return next(line for line in lines if line.startswith("edge_prompt_tokens_total"))

    vectors(encoder, input="hello")
    before = count_tokens()
    data = json.dumps({"input": ["x" * 200] * 2048}).encode()
    head = f"POST {OPENAI} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    with encoder.connect() as sock:
        sock.sendall(head.encode() + data)
        while not encoder.counts()["running"]:
            time.sleep(0.002)
    while encoder.counts()["running"]:
        time.sleep(0.002)
    assert count_tokens() == before, "its vectors were computed to the end"
