"""The server's own description: it is what the readers read, and answers keep to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from boardfit.edge.serve.app import ANSWERS
from boardfit.edge.serve.openapi import describe_body
from tests.edge.serve.conftest import Served
from tests.programs import skip_or_fail

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]

#: Schemathesis with these checks: no 5xx, and no answer outside the description.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)


def fields(path: str) -> dict[str, Any]:
    found: dict[str, Any] = describe_body(ANSWERS[path][0])["properties"]
    return found


def types(schema: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for each in schema.get("anyOf", [schema]):
        found |= {each["type"]} if isinstance(each["type"], str) else set(each["type"])
    return found


def test_fields_are_those_that_readers_read() -> None:
    chat = fields("/v1/chat/completions")
    assert chat["top_logprobs"] == {"type": ["integer", "null"], "minimum": 0, "maximum": 20}
    message = chat["messages"]["items"]["properties"]
    assert types(message["content"]) == {"string", "array", "null"}
    assert types(chat["stop"]) == {"string", "array", "null"}
    assert types(chat["max_tokens"]) == {"integer", "null"}
    assert chat["stream_options"]["properties"]["include_usage"]["type"] == ["boolean", "null"]
    assert types(fields("/v1/completions")["prompt"]) == {"string", "array"}
    assert types(fields("/v1/responses")["input"]) == {"string", "array", "null"}
    assert "num_predict" in fields("/api/chat")["options"]["properties"]
    assert "raw" in fields("/api/generate")


def test_every_route_is_described(scripted: Served) -> None:
    document = scripted.client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert {"/v1/models", "/metrics", "/edge/v1/predict", *ANSWERS} <= set(document["paths"])
    for path, operations in document["paths"].items():
        if "get" in operations:
            assert scripted.client.get(path).status_code in (200, 404), path


@pytest.mark.slow
def test_no_request_leads_outside_the_description(scripted: Served, tmp_path: Path) -> None:
    clients = os.environ.get("BOARDFIT_CLIENTS_PYTHON")
    if not clients:
        skip_or_fail("BOARDFIT_CLIENTS_PYTHON is not set; scripts/test makes its environment")
    program = Path(clients).with_name("schemathesis")
    done = subprocess.run(
        [program, "run", f"{scripted.url}/openapi.json", "--checks", CHECKS, "--seed", "1",
         "--max-examples", "10", "--generation-deterministic", "--workers", "1",
         "--phases", "examples,coverage,fuzzing"],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
