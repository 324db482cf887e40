"""Who may ask: names, origins, tokens, paths. The cases are those that other servers fell for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from boardfit.edge.serve.access import AccessRules, own_names, split_host
from boardfit.edge.serve.app import App
from boardfit.edge.serve.queue import AnswerQueue
from boardfit.edge.serve.refused import RequestRefused

LOOPBACK = AccessRules(own_names(("127.0.0.1", "::1"), ()))
LAN = AccessRules(
    own_names(("0.0.0.0", "::"), ("Board.Example.",)),
    token="secret",
    origins=frozenset(["http://hass.local:8123"]),
)


def status(
    guard: AccessRules, method: str = "GET", path: str = "/v1/models", **headers: str
) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        guard.check(method, path.encode(), {"host": "localhost:8080", **named})
    except RequestRefused as refused:
        return refused.status
    return 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", 200), ("LOCALHOST:8080", 200), ("127.0.0.1:1", 200), ("[::1]:8080", 200),
     ("localhost.", 200), ("evil.example", 403), ("localhost.evil.example", 403), ("", 403),
     ("127.0.0.1.nip.io", 403), ("localhost:evil", 403), ("[::1", 200), ("localhost@evil", 403)],
)  # fmt: skip
def test_names(host: str, expected: int) -> None:
    """DNS rebinding (CVE-2024-28224): the check holds on the network too."""
    assert status(LOOPBACK, host=host) == expected
    assert status(LAN, host=host, authorization="Bearer secret") == expected


def test_a_server_on_the_network_goes_by_its_own_names() -> None:
    assert status(LAN, host="board.example:8080", authorization="Bearer secret") == 200
    assert "board.example" not in LOOPBACK.names and len(LAN.names) > len(LOOPBACK.names)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"origin": "http://localhost:8080"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://localhost:8081"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:8080.evil.example"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
    ],
)
def test_pages_of_other_origins_may_not_ask(headers: dict[str, str], expected: int) -> None:
    assert status(LOOPBACK, **headers) == expected
    assert LOOPBACK.cors_headers(headers.get("origin")) == {}


def test_a_named_origin_may_ask_and_is_told_so() -> None:
    origin = "http://hass.local:8123"
    given = {"origin": origin, "sec_fetch_site": "cross-site", "authorization": "Bearer secret"}
    assert status(LAN, **given) == 200
    assert LAN.cors_headers(origin)["Access-Control-Allow-Origin"] == origin
    assert LAN.cors_headers("http://evil.example") == {}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_of_a_page_is_refused_and_curl_is_not(kind: str) -> None:
    page = {"origin": "http://localhost:8080", "content_type": kind}
    assert status(LOOPBACK, "POST", **page) == 415
    assert status(LOOPBACK, "POST", content_type=kind) == 200
    assert status(LOOPBACK, "POST", origin=page["origin"], content_type="application/json") == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({}, 401), ({"authorization": "Bearer secret"}, 200),
     ({"authorization": "bearer secret"}, 200), ({"x_api_key": "secret"}, 200),
     ({"authorization": "Bearer wrong"}, 401), ({"authorization": "Basic secret"}, 401),
     ({"authorization": "Bearer "}, 401),
     ({"x_api_key": "sécret"}, 401)],
)  # fmt: skip
def test_tokens(headers: dict[str, str], expected: int) -> None:
    assert status(LAN, **headers) == expected
    for path in ("/metrics", "/api/tags", "/edge/v1/status", "/within/2s/v1/models", "/ready"):
        assert status(LAN, path=path, **headers) == expected
    assert status(LAN, path="/health", **headers) == 200


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/v1/models", 200), ("/v1/models?a=//..", 200), ("/", 200), ("/v1/models/a@2s", 200),
     ("//v1/models", 404), ("/v1/../x", 404), ("/v1/%2e%2e", 404), ("/v1/a\\b", 404),
     ("http://evil/v1/models", 404), ("*", 404), ("/health/..", 404)],
)  # fmt: skip
def test_paths_are_judged_as_they_came(path: str, expected: int) -> None:
    assert status(LOOPBACK, path=path) == expected


def test_hosts_are_taken_apart() -> None:
    assert split_host("[FE80::1]:80") == "fe80::1" and split_host("a.b:80") == "a.b"
    assert split_host("a:b") == "" and split_host("a::1") == ""


class NoModel(AnswerQueue):
    """A queue whose model never loads."""

    def __init__(self) -> None:
        super().__init__(lambda: pytest.fail("nothing is loaded"))


def answer(app: App, method: str, path: str, **headers: str) -> int:
    """The status of a request with an empty body."""
    statuses: list[int] = []
    names = {"host": "localhost", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in names.items()],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    asyncio.run(app(scope, receive, send))
    return statuses[0]


@pytest.mark.parametrize("prefix", ["", "/within/2s"], ids=["plain", "timed"])
def test_every_route_keeps_the_rules(prefix: str) -> None:
    app = App(NoModel(), AccessRules(frozenset({"localhost"}), token="secret"))
    routes = list(app._routes)
    assert len(routes) > 25
    for method, path in routes:
        is_open = path in ("/", "/health") and not prefix
        found = answer(app, method, prefix + path)
        assert (found == 401) is not is_open, (method, path, found)
        assert answer(app, method, prefix + path, host="evil.example") == 403, (method, path)
        page = {"origin": "http://evil.example", "authorization": "Bearer secret"}
        assert answer(app, method, prefix + path, **page) == 403, (method, path)
        if method == "POST":
            ours = {"authorization": "Bearer secret"}
            long = answer(app, method, prefix + path, content_length=str(2 << 20), **ours)
            packed = answer(app, method, prefix + path, content_encoding="gzip", **ours)
            assert (long, packed) == (413, 415), (method, path)
