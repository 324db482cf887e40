"""Where a password goes when the registry, or a host that it leads to, lies. Real servers."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from boardfit.converters.oci.credentials import Credentials
from boardfit.converters.oci.push import upload
from boardfit.converters.oci.registry import Registry, origin, parse_reference
from boardfit.edge.errors import EdgeError, InputError, UnsafeInputError

ME = Credentials("me", "SECRETPASSWORD")
TOKEN = Credentials(identity_token="SECRETPASSWORD")
Answer = tuple[int, dict[str, str], bytes]
Rule = Callable[[str, str, dict[str, str]], Answer]


@dataclass
class Host:
    """A server that answers by one rule and keeps every header and body that it was sent."""

    rule: Rule
    name: str = "127.0.0.1"
    heard: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                sent = dict(self.headers.items())
                host.heard.append(f"{self.command} {self.path} {sent} {body!r}")
                status, headers, answer = host.rule(self.command, self.path, sent)
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{self.name}:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def was_told(self) -> bool:
        """Whether anything secret came here."""
        secret = (ME.basic, "SECRETPASSWORD", "Bearer", "Cookie")
        return any(word in heard for heard in self.heard for word in secret)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def start() -> Iterator[Callable[[Rule], Host]]:
    with ExitStack() as stack:

        def start(rule: Rule, name: str = "127.0.0.1") -> Host:
            host = Host(rule, name)
            stack.callback(host.close)
            return host

        yield start


def asks(realm: str) -> Answer:
    return 401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="x"'}, b""


def connect(host: Host, who: Credentials = ME) -> Registry:
    return Registry(parse_reference(f"{host.address}/edge/kit:v1"), credentials=who)


def fetch(registry: Registry) -> bytes:
    with registry, registry.blob("0" * 64) as response:
        registry.expect(response, 200)
        return response.read()


# ---- behind a redirect --------------------------------------------------------------------------


@pytest.mark.parametrize("who", [ME, TOKEN])
@pytest.mark.parametrize("challenge", ["Bearer", "Basic"])
def test_a_401_behind_a_redirect_is_an_error(
    start: Callable[..., Host], who: Credentials, challenge: str
) -> None:
    def steal(method: str, path: str, _: dict[str, str]) -> Answer:
        if "steal" in path:
            return 200, {}, b'{"token": "x"}'
        return 401, {"WWW-Authenticate": f'{challenge} realm="{store.url}/steal"'}, b""

    store = start(steal)
    registry = start(lambda *_: (307, {"Location": f"{store.url}/blob"}, b""))
    with pytest.raises(UnsafeInputError, match="for the registry only") as caught:
        fetch(connect(registry, who))
    assert caught.value.next_step and store.heard and not store.was_told()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_another_port_or_name_is_another_host(start: Callable[..., Host], name: str) -> None:
    store = start(lambda *_: asks(f"{store.url}/steal"), name)
    registry = start(lambda *_: (302, {"Location": f"{store.url}/blob"}, b""))
    with pytest.raises(UnsafeInputError):
        fetch(connect(registry))
    assert not store.was_told()


def test_a_way_back_to_the_registry_carries_nothing(start: Callable[..., Host]) -> None:
    """A store that sends us back chooses what is asked of the registry in our name."""

    def rule(method: str, path: str, headers: dict[str, str]) -> Answer:
        if path.startswith("/token"):
            return 200, {}, b'{"token": "abc"}'
        if path == "/back":
            assert "Authorization" not in headers
            return asks(f"{registry.url}/token")
        if "Authorization" not in headers:
            return asks(f"{registry.url}/token")
        return 307, {"Location": f"{store.url}/blob"}, b""

    registry = start(rule)
    store = start(lambda *_: (307, {"Location": f"{registry.url}/back"}, b""))
    with pytest.raises(UnsafeInputError, match="for the registry only"):
        fetch(connect(registry))
    assert not store.was_told()


def test_a_token_goes_to_the_registry_and_not_with_the_redirect(
    start: Callable[..., Host],
) -> None:
    def rule(method: str, path: str, headers: dict[str, str]) -> Answer:
        if path.startswith("/token"):
            return 200, {"Set-Cookie": "Cookie=1; Path=/"}, b'{"token": "abc"}'
        if headers.get("Authorization") != "Bearer abc":
            return asks(f"{registry.url}/token")
        return 307, {"Location": f"{store.url}/blob", "Set-Cookie": "Cookie=2; Path=/"}, b""

    registry, store = start(rule), start(lambda *_: (200, {}, b"data"))
    assert fetch(connect(registry)) == b"data"
    assert not store.was_told()
    assert not any("Cookie=" in heard for heard in registry.heard), "cookies are not kept"


# ---- the token service --------------------------------------------------------------------------


@pytest.mark.parametrize("who", [ME, TOKEN])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_of_the_token_request_is_not_followed(
    start: Callable[..., Host], who: Credentials, status: int
) -> None:
    thief = start(lambda *_: (200, {}, b'{"token": "x"}'))

    def rule(method: str, path: str, _: dict[str, str]) -> Answer:
        if path.startswith("/token"):
            return status, {"Location": f"{thief.url}/steal"}, b""
        return asks(f"{registry.url}/token")

    registry = start(rule)
    with pytest.raises(InputError):
        fetch(connect(registry, who))
    assert not thief.heard


@pytest.mark.parametrize(
    "realm",
    ["http://somewhere.example/token", "ftp://127.0.0.1/token", "//127.0.0.1/token", "token",
     "https://other@127.0.0.1:1/token", "https://127.0.0.1:1\\@somewhere.example/", "https://",
     "file:///etc/passwd"],
)  # fmt: skip
def test_a_token_service_is_encrypted_or_on_the_registry(
    start: Callable[..., Host], realm: str
) -> None:
    registry = start(lambda *_: asks(realm))
    with pytest.raises(UnsafeInputError):
        fetch(connect(registry))


@pytest.mark.parametrize("body", [b'{"token": "a\\nb"}', b'{"token": "\xc3\xa9"}', b"[]", b"{"])
def test_a_token_is_plain_text(start: Callable[..., Host], body: bytes) -> None:
    def rule(method: str, path: str, _: dict[str, str]) -> Answer:
        return (200, {}, body) if path.startswith("/token") else asks(f"{registry.url}/token")

    registry = start(rule)
    with pytest.raises(InputError, match="gives no token"):
        fetch(connect(registry))


@pytest.mark.parametrize(
    "challenge",
    ["Bearer " + "a" * 60_000, "Bearer " + 'a="' * 2700, "Bearer " + "a " * 4000],
    ids=["long", "open", "many"],
)
def test_a_challenge_takes_no_time(start: Callable[..., Host], challenge: str) -> None:
    registry = start(lambda *_: (401, {"WWW-Authenticate": challenge}, b""))
    began_s = time.monotonic()
    with pytest.raises(EdgeError):
        fetch(connect(registry))
    assert time.monotonic() - began_s < 10


def test_nobody_else_supplies_credentials(
    start: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """~/.netrc is for other programs; httpx must not use it for a host that we are led to."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1\nlogin me\npassword SECRETPASSWORD\n")
    (tmp_path / "netrc").chmod(0o600)
    (tmp_path / ".netrc").write_bytes((tmp_path / "netrc").read_bytes())
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    store = start(lambda *_: (200, {}, b"data"))
    registry = start(lambda *_: (307, {"Location": f"{store.url}/blob"}, b""))
    with connect(registry) as client:
        client._client = httpx.Client(trust_env=True)  # as for a registry on another machine
        with client.blob("0" * 64) as response:
            assert response.read() == b"data"
    assert not store.was_told() and not registry.was_told()


# ---- uploads ------------------------------------------------------------------------------------


def send(registry: Registry) -> None:
    with registry:
        upload(registry, "0" * 64, b"model", 5, lambda _: None)


def test_an_upload_elsewhere_carries_no_credentials(start: Callable[..., Host]) -> None:
    def rule(method: str, path: str, headers: dict[str, str]) -> Answer:
        if headers.get("Authorization") != ME.basic:
            return 401, {"WWW-Authenticate": "Basic"}, b""
        return 202, {"Location": f"{store.url}/put?x=1"}, b""

    registry, store = start(rule), start(lambda *_: (201, {}, b""))
    send(connect(registry))
    assert "PUT /put?x=1&digest" in store.heard[0] and not store.was_told()
    store.rule = lambda *_: asks(f"{store.url}/steal")
    with pytest.raises(UnsafeInputError, match="for the registry only"):
        send(connect(registry))
    assert not store.was_told()


@pytest.mark.parametrize(
    "location", ["ftp://x/y", "http://me:pw@127.0.0.1/x", "http://[::1", "data:"]
)
def test_an_upload_goes_to_a_plain_address(start: Callable[..., Host], location: str) -> None:
    registry = start(lambda *_: (202, {"Location": location}, b""))
    with pytest.raises(UnsafeInputError):
        send(connect(registry))


@pytest.mark.parametrize(
    "told", ["0-²", "0-" + "9" * 5000, "0-99", "0--1"], ids=["odd", "huge", "more", "less"]
)
def test_a_registry_that_lies_about_an_upload(
    start: Callable[..., Host], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(method: str, path: str, _: dict[str, str]) -> Answer:
        if method == "POST":
            return 202, {"Location": "/up"}, b""
        if method == "GET":
            return 204, {"Range": told.encode().decode("latin-1"), "Location": "/up"}, b""
        raise ConnectionAbortedError

    monkeypatch.setattr(ThreadingHTTPServer, "handle_error", lambda *_: None)
    with pytest.raises(InputError):
        send(connect(start(rule)))


def test_odd_numbers_and_lists_are_no_bugs(start: Callable[..., Host]) -> None:
    answers = iter([(503, {"Retry-After": "\xb2"}, b""), (200, {}, b"data")])
    assert fetch(connect(start(lambda *_: next(answers)))) == b"data"
    with connect(start(lambda *_: (200, {}, b'{"tags": 5}'))) as registry:
        assert registry.tags() == []


def test_an_origin_is_read_as_the_client_reads_it() -> None:
    assert origin("https://Host/x") == origin("https://host:443") == ("https", "host", 443)
    assert origin("http://[::1]:5000/x") == ("http", "::1", 5000)
    basic = base64.b64encode(b"me:SECRETPASSWORD").decode()
    assert ME.basic == f"Basic {basic}" and "SECRET" not in repr(ME)
