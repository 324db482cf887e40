"""Probabilities over HTTP are those of the engine and of the quality card, and in the forms that
openai's clients and lm-eval read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.quality.card import measure_text
from boardfit.converters.quality.reference import read_references
from boardfit.converters.quality.texts import texts_for
from boardfit.converters.source.resolve import open_model
from boardfit.edge.engines import EngineSettings, open_engine
from boardfit.edge.serve.ask import Ask
from boardfit.edge.serve.refused import RequestRefused
from boardfit.edge.serve.scoring import Likely, Score, check_scoring, score_tokens
from boardfit.edge.serve.wire.base import text_logprobs
from boardfit.edge.types import GenerationConfig, LogitsEngine
from tests.edge.engines.engine_models import CHAT_REPLY, REPLY, Models
from tests.edge.serve.conftest import Served, serving

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]

ONE_THREAD = EngineSettings(n_threads=1)


def complete(served: Served, prompt: object, **fields: object) -> dict[str, Any]:
    answer = served.post("/v1/completions", {"prompt": prompt, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


@pytest.fixture(scope="module")
def engine(models: Models):
    with open_engine("llama_cpp", models.scripted, ONE_THREAD) as opened:
        yield opened


def test_an_echoed_prompt_has_the_engines_probabilities(scripted: Served, engine: Any) -> None:
    ids = engine.prompt("hello you")
    found = complete(scripted, ids, echo=True, logprobs=2, max_tokens=1)
    logits = engine.logits(ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    got = found["logprobs"]["token_logprobs"]
    assert got[0] is None and found["logprobs"]["top_logprobs"][0] is None
    assert len(got) == len(ids) + 1, "lm-eval counts the one that was generated"
    assert got[1:-1] == pytest.approx(
        [row[i] for row, i in zip(expected[:-1], ids[1:], strict=True)], abs=1e-5
    )
    top = found["logprobs"]["top_logprobs"][1]
    assert max(top.values()) == pytest.approx(expected[0].max(), abs=1e-5) and len(top) in (2, 3)
    assert found["text"].startswith("hello you")
    assert found["logprobs"]["text_offset"][:2] == [0, len(found["logprobs"]["tokens"][0])]


@pytest.mark.parametrize("form", ["ids", "text", "batch"])
def test_a_prompt_comes_as_ids_or_text(scripted: Served, engine: Any, form: str) -> None:
    ids = engine.prompt("hello x")
    prompt = {"ids": ids, "text": "hello x", "batch": [ids]}[form]
    found = complete(scripted, prompt, echo=True, max_tokens=40)
    assert found["text"] == f"hello x{REPLY}" and found["logprobs"] is None


def test_the_end_has_a_score_where_nothing_else_was_generated(
    scripted: Served, engine: Any
) -> None:
    ids = engine.prompt(f"x{REPLY}")
    found = complete(scripted, ids, echo=True, logprobs=1, max_tokens=1)
    assert found["finish_reason"] == "stop"
    assert len(found["logprobs"]["tokens"]) == len(ids) + 1
    assert found["logprobs"]["tokens"][-1] == ""
    assert found["logprobs"]["token_logprobs"][-1] > math.log(0.5)


def test_an_answers_tokens_have_probabilities(scripted: Served) -> None:
    choice = scripted.ask(logprobs=True, top_logprobs=3).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(each["bytes"]) for each in content).decode() == CHAT_REPLY
    for each in content:
        assert len(each["top_logprobs"]) == 3
        assert each["top_logprobs"][0]["logprob"] == each["logprob"] <= 0, "greedy takes the first"
    assert scripted.ask().json()["choices"][0]["logprobs"] is None


def test_a_stream_has_them_behind_its_text(scripted: Served) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "logprobs": True}
    found = scripted.stream("/v1/chat/completions", body)
    said = "".join(each["choices"][0]["delta"].get("content", "") for each in found)
    scored = [each for each in found if each["choices"][0]["logprobs"]]
    assert said == CHAT_REPLY and len(scored) == 1 and found.index(scored[0]) == len(found) - 2
    body = {"prompt": "x", "stream": True, "logprobs": 0, "echo": True, "max_tokens": 40}
    found = scripted.stream("/v1/completions", body)
    assert "".join(each["choices"][0]["text"] for each in found) == f"x{REPLY}"
    assert found[-1]["choices"][0]["logprobs"]["token_logprobs"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"logprobs": 3}, "logprobs"),
        ("chat/completions", {"logprobs": True, "within": "2s"}, "logprobs"),
        ("completions", {"prompt": [["a"]]}, "prompt"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": [1, "a"]}, "prompt"),
        ("completions", {"prompt": [True]}, "prompt"),
        ("completions", {"prompt": [1 << 40]}, "prompt"),
        ("completions", {"prompt": [10**6]}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": None}, "prompt"),
        ("completions", {"prompt": [[]]}, "prompt"),
        ("completions", {"prompt": "x", "echo": 1}, "echo"),
        ("completions", {"prompt": "x", "logprobs": 21}, "logprobs"),
    ],
    ids=range(15),
)
def test_wrong_fields_are_named(
    scripted: Served, path: str, fields: dict[str, Any], param: str
) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    refused = scripted.post(f"/v1/{path}", body)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param


def test_a_default_time_does_not_bind_scored_answers(models: Models, tmp_path: Path) -> None:
    with serving(models.scripted, tmp_path / "home", ["--within", "5s"]) as served:
        answer = served.ask(logprobs=True).json()
        assert answer["choices"][0]["logprobs"] and "within_s" not in answer["edge"]


def test_an_engine_without_distributions_is_named() -> None:
    class Plain:
        def describe(self) -> Any:
            return type("Info", (), {"name": "plain"})

    ask = Ask(GenerationConfig(), stream=False, prompt="x", logprobs=0)
    with pytest.raises(RequestRefused, match="logprobs: plain gives no probabilities"):
        check_scoring(Plain(), ask)  # type: ignore[arg-type]


def test_scoring_ends_when_its_client_goes(engine: LogitsEngine) -> None:
    with pytest.raises(RequestRefused, match="ended"):
        score_tokens(engine, [5] * 20, 0, 1, lambda: True)


def test_of_tokens_with_one_text_the_likelier_stays() -> None:
    top = (Likely(b"", -0.5), Likely(b"\xe2", -2.0))
    found = text_logprobs([Score(b"", -3.0, top)])
    assert found["top_logprobs"] == [{"": -0.5, "bytes:\\xe2": -2.0}]


@pytest.mark.slow
def test_perplexity_over_http_is_the_quality_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_CACHE", str(tmp_path / "cache"))
    spec, model = open_model("sample"), tmp_path / "sample.gguf"
    write_gguf(spec, load_recipe("q4_0"), model)
    text = texts_for(spec)[1:]  # prose, which surprises it
    (reference,) = read_references(spec, text, 256, tmp_path / "work", threads=1)
    with open_engine("llama_cpp", model, ONE_THREAD.replace(n_ctx=512)) as opened:
        card = measure_text(opened, reference, lambda done, total: None)
    losses: list[float] = []
    with serving(model, tmp_path / "home", ["--ctx", "512"]) as served:
        for tokens, positions, _ in reference.parts():
            # The request of lm-eval 0.4.13's local-completions, model_args batch_size=1.
            body = {"model": "x", "prompt": [list(map(int, tokens))], "temperature": 0,
                    "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}  # fmt: skip
            found = served.post("/v1/completions", body).json()["choices"][0]["logprobs"]
            assert len(found["token_logprobs"]) == len(tokens) + 1
            losses += [-found["token_logprobs"][i + 1] for i in positions]
    assert len(losses) == card["n_scored"]
    # A card lets llama.cpp choose its attention kernel, a server chooses the quicker one.
    assert math.exp(np.mean(losses)) == pytest.approx(card["ppl"], rel=1e-2)
