"""Answers of a form over every wire: they fit, or the request is refused with the cause."""

from __future__ import annotations

import json
import sys

import jsonschema
import ollama
import openai
import pytest

from boardfit.edge.serve.ask import make_form
from boardfit.edge.serve.refused import RequestRefused
from tests.edge.serve.conftest import Served

SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "kitchen"]}},
    "required": ["on", "room"],
    "additionalProperties": False,
}
ASKED = {"role": "user", "content": "hello"}
FORM = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": SCHEMA}}
serve = [pytest.mark.engine, pytest.mark.xdist_group("serve")]


def openai_client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


class TestServed:
    pytestmark = serve

    @pytest.mark.parametrize("within", [None, "60s"])
    def test_openai_chat(self, scripted: Served, within: str | None) -> None:
        """The scripted model wants to say something else."""
        answer = openai_client(scripted).chat.completions.create(
            model=scripted.model,
            messages=[ASKED],  # type: ignore[list-item]
            response_format=FORM,  # type: ignore[arg-type]
            extra_body={"within": within} if within else {},
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)

    def test_openai_responses(self, scripted: Served) -> None:
        answer = openai_client(scripted).responses.create(
            model=scripted.model,
            input="hello",
            text={"format": {"type": "json_schema", "name": "lamp", "schema": SCHEMA}},
        )
        jsonschema.validate(json.loads(answer.output_text), SCHEMA)

    def test_ollama_chat(self, scripted: Served) -> None:
        answer = ollama.Client(scripted.url).chat(scripted.model, [ASKED], format=SCHEMA)
        jsonschema.validate(json.loads(answer.message.content or ""), SCHEMA)

    def test_an_answer_that_cannot_be_whole_is_refused(self, scripted: Served) -> None:
        with pytest.raises(openai.BadRequestError, match="shortest answer"):
            openai_client(scripted).chat.completions.create(
                model=scripted.model,
                messages=[ASKED],  # type: ignore[list-item]
                response_format=FORM,  # type: ignore[arg-type]
                max_tokens=3,
            )

    @pytest.mark.parametrize("key", ["grammar", "regex", "lark", "guided_grammar"])
    def test_no_grammar_is_taken_from_a_request(self, scripted: Served, key: str) -> None:
        """Whatever it holds, the answer is the model's own."""
        answer = openai_client(scripted).chat.completions.create(
            model=scripted.model,
            messages=[ASKED],  # type: ignore[list-item]
            max_tokens=4,
            extra_body={key: 'root ::= "never"'},
        )
        assert "never" not in (answer.choices[0].message.content or "")


def test_a_schema_that_cannot_be_enforced_is_named() -> None:
    with pytest.raises(RequestRefused, match="uniqueItems") as refused:
        make_form({"type": "array", "uniqueItems": True}, "format")
    assert refused.value.status == 400


def test_without_the_library_nothing_is_faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestRefused, match="pip install") as refused:
        make_form(SCHEMA, "format")
    assert refused.value.status == 501
