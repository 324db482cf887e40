"""An OCI registry over HTTP: https://github.com/opencontainers/distribution-spec (1.1).

Redirects are followed here, not by the client: mirrors keep blobs on other hosts. Those never see
our credentials, and what they ask for is not answered. https is never left for http.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from boardfit.converters.oci.artifact import INDEX_TYPES, MANIFEST_TYPE, MAX_MANIFEST_BYTES
from boardfit.converters.oci.credentials import Credentials, find_credentials
from boardfit.edge import __version__
from boardfit.edge.errors import (
    DeviceUnreachableError,
    EdgeError,
    InputError,
    UnsafeInputError,
    UsageError,
)
from boardfit.edge.process.patience import LeastSpeed, call_within
from boardfit.edge.units import did_you_mean, printable

SHAPE = "registry[:port]/repository[:tag][@sha256:…]"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
# Distribution spec 1.1, "Pulling manifests": names, tags and digests.
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?")
Content = bytes | Callable[[], Iterator[bytes]]
TRIES = 5
_MAX_REDIRECTS = 5
_MAX_ERROR_BYTES = 64 * 1024
_FIRST_WAIT_S = 0.5
#: How long the head of an answer may take, and the least speed of what is sent or received.
_HEAD_S, LEAST_BYTES_S = 90, 1024
TOO_SLOW = f"it comes at less than {LEAST_BYTES_S} bytes/s"
_OWN = "boardfit.own"  # whether an answer came from the registry itself
_RETRIED = (408, 429, 500, 502, 503, 504)
_MAX_CHALLENGE = 8 * 1024
_CHALLENGE = re.compile(r'\b(\w{1,64})="([^"]*)"')
_ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


class Registry:
    """One repository of one registry. Close it when done; `with` does."""

    def __init__(
        self,
        reference: OciReference,
        *,
        plain_http: bool = False,
        credentials: Credentials | None = None,
    ) -> None:
        host = _ALIASES.get(reference.registry, reference.registry)
        scheme = "http" if plain_http or reference.is_loopback else "https"
        self.reference = reference
        self._base = f"{scheme}://{host}"
        self._credentials = credentials or find_credentials(host)
        self._authorization: str | None = None
        self._client = httpx.Client(
            timeout=httpx.Timeout(30, read=60),
            trust_env=not reference.is_loopback,  # no proxy leads back to this machine
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none are kept
            headers={"User-Agent": f"boardfit/{__version__}", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def url(self, rest: str) -> str:
        return f"{self._base}/v2/{self.reference.repository}/{rest}"

    # ---- manifests ----------------------------------------------------------------------------

    def manifest(self) -> bytes:
        """The manifest of the reference. Raises InputError when it is not there."""
        accept = ", ".join((MANIFEST_TYPE, *INDEX_TYPES))
        url = self.url(f"manifests/{self.reference.name}")
        with self.request("GET", url, headers={"Accept": accept}) as response:
            if response.status_code == 404:
                raise self._no_manifest(response)
            self.expect(response, 200)
            return read_body(response, MAX_MANIFEST_BYTES, str(self.reference))

    def put_manifest(self, data: bytes) -> None:
        assert self.reference.tag is not None
        url = self.url(f"manifests/{self.reference.tag}")
        headers = {"Content-Type": MANIFEST_TYPE}
        with self.request("PUT", url, headers=headers, content=data) as response:
            self.expect(response, 201)

    def tags(self) -> list[str]:
        """Names of the tags, for a message; empty if the registry does not list them."""
        try:
            with self.request("GET", self.url("tags/list?n=100")) as response:
                if response.status_code != 200:
                    return []
                names = json.loads(read_body(response, MAX_MANIFEST_BYTES, "tags")).get("tags")
                return [str(name) for name in names] if isinstance(names, list) else []
        except (EdgeError, ValueError, AttributeError, RecursionError):
            return []

    def _no_manifest(self, response: httpx.Response) -> EdgeError:
        reference, known = self.reference, self.tags()
        if not known:
            return InputError(
                f"there is no {printable(str(reference))}: {_error_text(response)}",
                next_step="check the name; a private one may ask for docker login "
                f"{reference.registry}",
            )
        tag = reference.name
        return InputError(
            f"{reference.registry}/{reference.repository} has no {printable(tag)!r}."
            f"{did_you_mean(tag, known)}",
            next_step="tags: " + printable(", ".join(known[:20]), 300),
        )

    # ---- blobs --------------------------------------------------------------------------------

    def has_blob(self, sha256: str, n_bytes: int) -> bool:
        with self.request("HEAD", self.url(f"blobs/sha256:{sha256}")) as response:
            if response.status_code == 404:
                return False
            self.expect(response, 200)
            value = response.headers.get("Content-Length")
            return value is None or value == str(n_bytes)

    @contextmanager
    def blob(self, sha256: str, start: int = 0) -> Iterator[httpx.Response]:
        """A blob's bytes from `start`: 206 where the registry knows ranges, else 200 with all."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self.request("GET", self.url(f"blobs/sha256:{sha256}"), headers=headers) as response:
            yield response

    # ---- requests -----------------------------------------------------------------------------

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
        retry: bool = True,
    ) -> Iterator[httpx.Response]:
        """One request, signed in when the registry asks for it, with redirects followed and busy
        servers asked again. The response is not read yet.

        Raises DeviceUnreachableError when the registry does not answer, InputError when access is
        denied, UnsafeInputError when another host than the registry asks for credentials.
        """
        response = self._answer(method, url, headers or {}, content, TRIES if retry else 1)
        try:
            yield response
        finally:
            response.close()

    def _answer(
        self, method: str, url: str, headers: Mapping[str, str], content: Content | None, tries: int
    ) -> httpx.Response:
        signed_in = False
        for attempt in range(1, tries + 2):
            try:
                response = self._follow(method, url, headers, content)
            except httpx.HTTPError as error:
                if attempt >= tries:
                    raise self._unreachable(error) from None
                time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
                continue
            if response.status_code == 401 and not response.extensions[_OWN]:
                response.close()
                host = printable(response.request.url.host, 100)
                raise UnsafeInputError(
                    f"{self.reference.registry} leads to {host}, which asks for credentials; they "
                    "are for the registry only",
                    next_step="ask the registry's operator: its redirects must need no credentials",
                )
            if response.status_code == 401 and not signed_in:
                response.close()
                self._authorization = self._sign_in(response)
                signed_in = True
            elif response.status_code in _RETRIED and attempt < tries:
                response.close()
                time.sleep(_wait_s(response, attempt))
            elif response.status_code in (401, 403):
                response.close()
                raise self._denied_error(response)
            else:
                return response
        raise self._unreachable(None)

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], content: Content | None
    ) -> httpx.Response:
        is_own = True  # until a redirect leaves the registry; a way back there does not count
        for _ in range(_MAX_REDIRECTS + 1):
            sent = dict(headers)
            is_own = is_own and origin(url) == origin(self._base)
            if self._authorization and is_own:
                sent["Authorization"] = self._authorization
            body = content() if callable(content) else content
            request = self._client.build_request(method, url, headers=sent, content=body)
            response = self._send(request)
            if response.status_code not in (301, 302, 303, 307, 308):
                response.extensions[_OWN] = is_own
                return response
            response.close()
            url = redirect_target(url, response.headers.get("Location", ""))
        raise InputError(f"{self.reference.registry} redirects in a circle")

    def _send(self, request: httpx.Request) -> httpx.Response:
        """The head of the answer. The client limits each read only: a head that comes a byte at a
        time would never end. Raises httpx.ReadTimeout after the time that the body sent may take.
        """
        n_bytes = request.headers.get("Content-Length", "0")
        sent = int(n_bytes) if re.fullmatch("[0-9]{1,15}", n_bytes) else 0
        send = lambda: self._client.send(request, stream=True, follow_redirects=False)  # noqa: E731
        try:
            return call_within(send, _HEAD_S + sent / LEAST_BYTES_S)
        except TimeoutError:
            raise httpx.ReadTimeout("the answer did not come in time", request=request) from None

    def expect(self, response: httpx.Response, *codes: int) -> None:
        """Raises InputError with the registry's words for any other status."""
        if response.status_code not in codes:
            raise InputError(
                f"{self.reference.registry} answers {response.status_code} to "
                f"{response.request.method} {printable(response.request.url.path, 200)}: "
                f"{_error_text(response)}"
            )

    # ---- signing in ---------------------------------------------------------------------------

    def _sign_in(self, response: httpx.Response) -> str:
        """The Authorization header that a 401 asks for (docs/spec/auth/token.md)."""
        challenge = response.headers.get("WWW-Authenticate", "")
        if len(challenge) > _MAX_CHALLENGE:
            raise UnsafeInputError(
                f"{self.reference.registry} asks for credentials in {len(challenge)} characters; "
                f"at most {_MAX_CHALLENGE} are read"
            )
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            if self._credentials is None or not self._credentials.user:
                raise self._denied_error(response)
            return self._credentials.basic
        fields = dict(_CHALLENGE.findall(rest))
        realm = fields.get("realm", "")
        if kind.lower() != "bearer" or not realm:
            raise self._denied_error(response)
        self._check_realm(realm)
        wanted = {key: fields[key] for key in ("service", "scope") if key in fields}
        request = self._token_request(realm, wanted)
        try:
            answer = self._send(request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        try:
            if answer.status_code != 200:
                raise self._denied_error(answer)
            document = json.loads(read_body(answer, _MAX_ERROR_BYTES, "the token"))
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, EdgeError):
                raise
            token = None
        finally:
            answer.close()
        if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
            raise InputError(f"{printable(realm, 100)} gives no token")
        return f"Bearer {token}"

    def _check_realm(self, realm: str) -> None:
        """Refuse an unencrypted token service, but on the host of an unencrypted registry."""
        scheme, host, _ = origin(realm)
        is_as_ours = scheme == "http" and (scheme, host) == origin(self._base)[:2]
        if not host or (scheme != "https" and not is_as_ours):
            raise UnsafeInputError(
                f"{self.reference.registry} wants credentials sent to {printable(realm, 100)!r}, "
                "which is not encrypted"
            )

    def _token_request(self, realm: str, wanted: dict[str, str]) -> httpx.Request:
        known = self._credentials
        if known is not None and known.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "boardfit", **wanted,
                    "refresh_token": known.identity_token}  # fmt: skip
            return self._client.build_request("POST", realm, data=form)
        headers = {"Authorization": known.basic} if known is not None and known.user else {}
        return self._client.build_request("GET", realm, params=wanted, headers=headers)

    def _denied_error(self, response: httpx.Response) -> EdgeError:
        who = "these credentials" if self._credentials else "users without credentials"
        return InputError(
            f"{self.reference.registry} does not let {who} do this "
            f"({self.reference.repository}: {response.status_code})",
            next_step=f"docker login {self.reference.registry} (or podman login) stores what edge "
            "uses; check the repository's name",
        )

    def _unreachable(self, error: Exception | None) -> EdgeError:
        hint = ""
        if self._base.startswith("https") and error and "SSL" in str(error):
            hint = " (--plain-http, if it really speaks no TLS)"
        return DeviceUnreachableError(
            f"the registry {self.reference.registry} does not answer: "
            f"{printable(str(error) or type(error).__name__, 200)}",
            next_step=f"check name, network and proxy, then run it again: it goes on{hint}",
        )


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address, as the client that connects there reads it. Raises
    UnsafeInputError for what is no address, or one with a user in it.
    """
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise UnsafeInputError(f"a registry names {printable(url, 120)!r}, no address") from None
    if parts.userinfo:
        raise UnsafeInputError(f"a registry names an address with a user in it: {parts.host}")
    return parts.scheme, parts.host, parts.port or (443 if parts.scheme == "https" else 80)


def redirect_target(url: str, location: str) -> str:
    """Where a redirect or an upload's Location leads. Raises UnsafeInputError for one that leaves
    http(s), or https for http.
    """
    try:
        target = str(httpx.URL(url).join(location))
    except (httpx.InvalidURL, ValueError):
        target = location
    scheme, host, _ = origin(target)
    if scheme not in ("http", "https") or not host:
        raise UnsafeInputError(f"a registry leads to {printable(target, 120)!r}")
    if origin(url)[0] == "https" and scheme != "https":
        raise UnsafeInputError(f"a registry leads to {printable(target, 120)!r}, unencrypted")
    return target


def read_body(response: httpx.Response, limit: int, what: str) -> bytes:
    """A whole small body. Raises UnsafeInputError when it is larger than `limit`, IntegrityError
    when it ends early.
    """
    data = bytearray()
    try:
        speed = LeastSpeed(LEAST_BYTES_S)
        for chunk in response.iter_raw():
            data += chunk
            if len(data) > limit:
                raise UnsafeInputError(f"{what}: more than {limit} bytes come")
            if not speed.add(len(chunk)):
                raise DeviceUnreachableError(f"{what}: {TOO_SLOW}", next_step="run it again later")
    except httpx.HTTPError as error:
        raise DeviceUnreachableError(
            f"{what}: the connection broke: {error}", next_step="run it again"
        ) from None
    return bytes(data)


def _wait_s(response: httpx.Response, attempt: int) -> float:
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return min(30.0, float(value[:4]))
    return float(_FIRST_WAIT_S * 2 ** (attempt - 1))


def _error_text(response: httpx.Response) -> str:
    """The registry's own words: the code and message of its first error."""
    try:
        if not response.is_closed:
            data = read_body(response, _MAX_ERROR_BYTES, "error")
            first: Any = json.loads(data)["errors"][0]
            return printable(f"{first.get('code')}: {first.get('message')}", 200)
    except (EdgeError, LookupError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return response.reason_phrase or "no message"


@dataclass(frozen=True)
class OciReference:
    """Where an artifact lies. `digest` pins it, even if the tag moved."""

    registry: str
    repository: str
    tag: str | None = "latest"
    digest: str | None = None

    @property
    def host(self) -> str:
        """The registry without its port."""
        return self.registry.rpartition("]")[0].lstrip("[") or self.registry.partition(":")[0]

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def name(self) -> str:
        """What is asked for in a manifest's address."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}" + (
            f"@{self.digest}" if self.digest else ""
        )


def parse_reference(text: str) -> OciReference:
    """Take a reference apart; without tag and digest the tag is `latest`. Raises UsageError."""
    registry, slash, rest = text.partition("/")
    if "://" in text or not slash or not _is_registry(registry):
        raise _wrong(text, f"expected {SHAPE}, for example ghcr.io/me/assistant:pi5")
    rest, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _wrong(text, "a digest is sha256: and 64 hex digits")
    repository, colon, tag = rest.partition(":")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise _wrong(
            text,
            f"{printable(repository, 80)!r} is not a repository: "
            "lower-case letters, digits, . _ - /",
        )
    if colon and not _TAG.fullmatch(tag):
        raise _wrong(
            text, f"{printable(tag, 80)!r} is not a tag: letters, digits, . _ -, at most 128"
        )
    return OciReference(registry, repository, tag or (None if digest else "latest"), digest or None)


def _is_registry(text: str) -> bool:
    """Only what cannot be a repository's first part, so that nothing is guessed."""
    known = "." in text or ":" in text or text == "localhost"
    return known and _HOST.fullmatch(text) is not None


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(f"not a reference: {printable(text, 120)!r}; {why}")
