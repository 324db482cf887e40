"""llama-server's own calls: tokens, settings, slots."""

from __future__ import annotations

from typing import Any

import pytest

from tests.edge.serve.conftest import HELLO, Served

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]
TEXT = "hello ž €"


def tokenize(served: Served, **fields: object) -> dict[str, Any]:
    answer = served.post("/tokenize", fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("key", ["content", "prompt"])
def test_tokens_and_back(scripted: Served, key: str) -> None:
    found = tokenize(scripted, **{key: TEXT})
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] > 100
    back = scripted.post("/detokenize", {"tokens": found["tokens"]}).json()
    assert back["content"] == back["prompt"] == TEXT


def test_pieces_are_texts_or_bytes(scripted: Served) -> None:
    found = tokenize(scripted, content=TEXT, with_pieces=True)["tokens"]
    assert [each["id"] for each in found] == tokenize(scripted, content=TEXT)["tokens"]
    pieces = [each["piece"] for each in found]
    assert [0xC5] in pieces  # the first byte of a character of two
    data = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces)
    assert data.decode() == TEXT


def test_special_tokens_are_read_unless_told_otherwise(scripted: Served) -> None:
    text = "<|im_start|>"
    assert tokenize(scripted, content=text)["count"] == 1
    assert tokenize(scripted, content=text, parse_special=False)["count"] > 5


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 7}, "content"),
        ("/tokenize", {"content": "a", "with_pieces": 1}, "with_pieces"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**31 - 1]}, "token 2147483647"),
    ],
    ids=["absent", "number", "flag", "text", "true", "negative", "unknown"],
)
def test_what_is_wrong_is_named(scripted: Served, path: str, body: object, param: str) -> None:
    refused = scripted.post(path, body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith(param)


def test_settings_and_slots_hold_no_prompt(scripted: Served) -> None:
    scripted.ask("a secret question")
    props = scripted.client.get("/props")
    found = props.json()
    assert found["default_generation_settings"]["n_ctx"] > 100
    assert found["model_path"] == "scripted.gguf" and found["model_alias"] == scripted.model
    assert "messages" in found["chat_template"] and found["total_slots"] >= 1
    slots = scripted.client.get("/slots")
    assert [slot["is_processing"] for slot in slots.json()] == [False] * found["total_slots"]
    assert slots.json()[0]["n_ctx"] == found["default_generation_settings"]["n_ctx"]
    assert "secret" not in props.text + slots.text
    assert scripted.post("/props", {}).status_code == scripted.post("/slots", {}).status_code == 405


def test_a_slot_that_computes_shows_it(endless: Served) -> None:
    body = {**HELLO, "stream": True}
    with endless.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
        assert endless.client.get("/slots").json()[0]["is_processing"] is True


def test_lm_eval_finds_a_tokenizer(scripted: Served) -> None:
    found = scripted.client.get("/tokenizer_info").json()
    assert found["eos_token"] and "messages" in found["chat_template"]
    assert tokenize(scripted, prompt=found["eos_token"], add_special_tokens=False)["count"] == 1
