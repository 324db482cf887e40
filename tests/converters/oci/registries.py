"""A real docker-registry on loopback, and what may stand in front of one: a relay that cuts,
strips, redirects and exchanges, and a server of tokens.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.edge.flash.boards import free_port, wait_for_port

PROGRAM = "docker-registry"


class DockerRegistry:
    """`with` it; `store` is where it keeps its blobs. `auth` is its configuration's entry."""

    def __init__(self, folder: Path, auth: dict[str, Any] | None = None) -> None:
        folder.mkdir(parents=True)
        self.port, self.store = free_port(), folder / "data"
        self.config = folder / "registry.yml"
        # JSON is YAML.
        document = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.store)},
                "delete": {"enabled": True},
            },
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "test"},
            **({"auth": auth} if auth else {}),
        }
        self.config.write_text(json.dumps(document))
        self._log = (folder / "log").open("wb")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def blob_file(self, sha256: str) -> Path:
        return self.store / f"docker/registry/v2/blobs/sha256/{sha256[:2]}/{sha256}/data"

    def __enter__(self) -> DockerRegistry:
        self._process = subprocess.Popen(
            [PROGRAM, "serve", str(self.config)], stdout=self._log, stderr=self._log
        )
        wait_for_port(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@dataclass
class Relay:
    """Between us and a registry. Every field changes what it does from the next request on."""

    to: int
    cut_after: int | None = None  # bytes of a blob's body, then the connection is reset
    cuts_left: int = 0
    cut_uploads_after: int | None = None  # bytes of an upload's body
    strip_range: bool = False
    redirect_blobs_to: str | None = None
    replace: dict[str, bytes] = field(default_factory=dict)  # end of a path → another body
    dead_after_cut: bool = False  # what was cut is not served again
    busy: int = 0  # answers of 503 before anything else
    status: dict[str, int] = field(default_factory=dict)  # end of a path → status
    wrong_content_range: bool = False
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        relay = self

        class Handler(RelayHandler):
            settings = relay

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def count(self, method: str, part: str) -> int:
        return sum(m == method and part in path for m, path, _ in self.requests)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class RelayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    settings: Relay

    def log_message(self, *_: object) -> None: ...

    def handle_any(self) -> None:
        relay = self.settings
        relay.requests.append((self.command, self.path, dict(self.headers.items())))
        is_blob = self.command == "GET" and "/blobs/sha256:" in self.path
        if relay.busy > 0:
            relay.busy -= 1
            self.answer(503, {}, b"")
            return
        status = next((c for end, c in relay.status.items() if self.path.endswith(end)), None)
        if status is not None:
            self.answer(status, {}, b"")
            return
        if is_blob and relay.redirect_blobs_to:
            self.answer(307, {"Location": relay.redirect_blobs_to + self.path}, b"")
            return
        other = next((body for end, body in relay.replace.items() if self.path.endswith(end)), None)
        if other is not None:
            self.answer(200, {}, other)
            return
        self.pass_on(is_blob)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

    def pass_on(self, is_blob: bool) -> None:
        relay = self.settings
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        headers["Host"] = relay.address  # so that the locations it names lead back here
        if relay.strip_range:
            headers.pop("Range", None)
        upstream = HTTPConnection("127.0.0.1", relay.to, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        with contextlib.suppress(ConnectionAbortedError):
            self.pass_body(upstream)
            got = upstream.getresponse()
            self.send_response_only(got.status)
            for name, value in got.getheaders():
                if name.lower() in ("connection", "transfer-encoding") or (
                    relay.strip_range and name.lower() == "accept-ranges"
                ):
                    continue
                if name.lower() == "content-range" and relay.wrong_content_range:
                    value = "bytes 0-1/2"
                self.send_header(name, value)
            self.end_headers()
            self.pass_answer(got, is_blob)
        upstream.close()

    def pass_body(self, upstream: HTTPConnection) -> None:
        relay, left = self.settings, int(self.headers.get("Content-Length") or 0)
        n_passed = 0
        while left:
            data = self.rfile.read(min(left, 1 << 16))
            if not data:
                raise ConnectionAbortedError
            left -= len(data)
            n_passed += len(data)
            upstream.send(data)
            cut = relay.cut_uploads_after
            if cut is not None and n_passed > cut and relay.cuts_left:
                relay.cuts_left -= 1
                self.cut()

    def pass_answer(self, got: Any, is_blob: bool) -> None:
        relay, n_passed = self.settings, 0
        while data := got.read(1 << 14):
            cut = relay.cut_after if is_blob and relay.cuts_left else None
            if cut is not None and n_passed + len(data) > cut:
                self.wfile.write(data[: cut - n_passed])
                relay.cuts_left -= 1
                if relay.dead_after_cut:
                    relay.status[self.path] = 503
                self.cut()
            self.wfile.write(data)
            n_passed += len(data)

    def cut(self) -> None:
        """As a pulled cable looks from the other end."""
        with contextlib.suppress(OSError):
            self.wfile.flush()
        time.sleep(0.05)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)
        raise ConnectionAbortedError

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class TokenServer:
    """Gives tokens that a real docker-registry accepts (distribution: docs/spec/auth/jwt.md)."""

    def __init__(self, folder: Path, user: str, password: str) -> None:
        import datetime

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        begin = datetime.datetime(2020, 1, 1)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(name).public_key(self._key.public_key())
            .serial_number(1).not_valid_before(begin)
            .not_valid_after(datetime.datetime(2099, 1, 1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        folder.mkdir(parents=True)
        self.bundle = folder / "root.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        der = certificate.public_bytes(serialization.Encoding.DER)
        self._x5c = base64.b64encode(der).decode()
        self._basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.asked: list[tuple[str | None, str]] = []
        self.lifetime_s = 60.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                given = self.headers.get("Authorization")
                server.asked.append((given, query.get("scope", [""])[0]))
                wrong = given is not None and given != server._basic
                body = json.dumps({"token": server.token(query, given)}).encode()
                self.send_response(401 if wrong else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def auth(self) -> dict[str, Any]:
        return {
            "token": {
                "realm": f"http://127.0.0.1:{self._server.server_address[1]}/token",
                "service": "test", "issuer": "tokens", "rootcertbundle": str(self.bundle),
            }
        }  # fmt: skip

    def token(self, query: dict[str, list[str]], given: str | None) -> str:
        """Anybody may pull; who signs in may push."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        access = []
        for scope in query.get("scope", []):
            kind, _, rest = scope.partition(":")
            repository, _, actions = rest.rpartition(":")
            allowed = [a for a in actions.split(",") if a == "pull" or given == self._basic]
            access.append({"type": kind, "name": repository, "actions": allowed})
        now = time.time()
        claims = {"iss": "tokens", "sub": "me", "aud": "test", "exp": int(now + self.lifetime_s),
                  "nbf": int(now) - 100, "iat": int(now), "jti": "1", "access": access}  # fmt: skip
        head = {"typ": "JWT", "alg": "ES256", "x5c": [self._x5c]}
        text = ".".join(_b64(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def __enter__(self) -> TokenServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@contextlib.contextmanager
def docker_config(folder: Path, registry: str, user: str, password: str) -> Iterator[Path]:
    """What `docker login` would have stored."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    path = folder / "config.json"
    path.write_text(json.dumps({"auths": {registry: {"auth": pair}}}))
    yield path
