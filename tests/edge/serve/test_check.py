"""The health gate's question over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.serve.check import check_server
from tests.edge.engines import tiny_gguf
from tests.edge.engines.engine_models import CHAT_REPLY, Models
from tests.edge.serve.conftest import Served, serving

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]


def test_a_server_that_answers_is_healthy(
    scripted: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    health = check_server(scripted.url, None)
    assert health.error is None and health.text == CHAT_REPLY and health.n_out >= 3


def test_a_token_is_sent_and_a_wrong_one_named(models: Models, tmp_path: Path) -> None:
    with serving(models.scripted, tmp_path / "home", ["--lan"]) as served:
        url = f"http://127.0.0.1:{served.port}"
        token = (tmp_path / "home/boardfit/serve.key").read_bytes().hex()
        assert check_server(url, token).text == CHAT_REPLY
        assert "401" in (check_server(url, "x" * 64).error or "")


def test_a_base_model_continues_text(tmp_path: Path) -> None:
    model = tiny_gguf.random_llama(tmp_path / "base.gguf", template=None)
    with serving(model, tmp_path / "home") as served:
        health = check_server(served.url, None)
        assert health.error is None and health.n_out > 0


def test_nobody_there_is_an_error() -> None:
    assert check_server("http://127.0.0.1:9", None).error
