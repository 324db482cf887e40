"""`edge serve` on the command line."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from boardfit.edge.serve.command import serve
from boardfit.edge.serve.listen import open_sockets
from tests.edge.engines.engine_models import CHAT_REPLY, Models
from tests.edge.serve.conftest import HELLO, Served, serving

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("serve")]


def test_the_network_needs_a_token(models: Models, tmp_path: Path) -> None:
    with serving(models.scripted, tmp_path / "home", ["--lan"]) as served:
        url = f"http://127.0.0.1:{served.port}"
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401
        (key,) = (tmp_path / "home").rglob("serve.key")
        assert key.stat().st_mode & 0o777 == 0o600
        headers = {"Authorization": f"Bearer {key.read_bytes().hex()}"}
        answer = httpx.post(f"{url}/v1/chat/completions", json=HELLO, headers=headers)
        assert answer.json()["choices"][0]["message"]["content"] == CHAT_REPLY


def test_a_default_budget_and_default_settings_hold(models: Models, tmp_path: Path) -> None:
    with serving(
        models.scripted, tmp_path / "h", ["--within", "9s", "--max-tokens", "2"]
    ) as served:
        answer = served.ask().json()
        assert answer["edge"]["within_s"] == 9.0 and answer["usage"]["completion_tokens"] == 2
        assert served.ask(within="4s", max_tokens=1).json()["edge"]["within_s"] == 4.0


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    for name in ("missing", "broken.gguf"):
        done = CliRunner().invoke(serve, [str(tmp_path / name), "--port", "0"])
        assert done.exit_code == 1 and "OpenAI" not in done.output
        assert done.exception is not None and name in str(done.exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--no-token"], "--no-token is for --lan"),
        (["--most", "soon"], "--most: not a time"),
        (["--slots", "17"], "--slots must be auto or 1 to 16"),
    ],
)
def test_options_that_make_no_sense(models: Models, options: list[str], words: str) -> None:
    done = CliRunner().invoke(serve, [str(models.scripted), *options])
    assert words in str(done.exception)


def test_a_port_in_use_is_named(models: Models) -> None:
    (taken, *_) = open_sockets(["127.0.0.1"], 0)
    with taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(serve, [str(models.scripted), "--port", port])
    assert f"port {port}" in str(done.exception)


def test_a_head_that_does_not_come_ends_the_connection(scripted: Served) -> None:
    """One byte a second (slowloris) is given ten seconds."""
    with scripted.connect() as sock:
        sock.settimeout(1.0)
        for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\n":
            try:
                sock.sendall(bytes([byte]))
                if sock.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("the connection is still open after 38 seconds")


def test_idle_connections_do_not_shut_others_out(scripted: Served) -> None:
    held = []
    for _ in range(70):
        held.append(scripted.connect())
    try:
        with scripted.connect() as one_more:
            one_more.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = one_more.recv(4096)
        assert b" 503 " in answer and b"application/json" in answer
    finally:
        for sock in held:
            sock.close()
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        try:
            assert scripted.client.get("/health").status_code == 200
            return
        except (httpx.TransportError, AssertionError):
            time.sleep(0.1)
    pytest.fail("connections that ended still count")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Exception, match="cannot listen on"):
        open_sockets(["203.0.113.7"], 0)
    for sock in open_sockets(["127.0.0.1", "::1"], 0):
        assert sock.getsockname()[1] > 0 and sock.family in (socket.AF_INET, socket.AF_INET6)
        sock.close()
