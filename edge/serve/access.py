"""Who may ask: the Host header, the Origin of a page, the token, the shape of a path.

A page in a browser can reach a server on loopback. So a name that is not ours is refused (DNS
rebinding), and a page of another origin is refused unless it was named.
"""

import hmac
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from boardfit.edge.serve.refused import RequestRefused

_PATH = re.compile(r"(/[A-Za-z0-9._@:~-]+)+/?|/")
#: Paths that need no token: they hold nothing of the model and no secret.
_OPEN = re.compile(r"/|/health|/page/[^/]+")
_SAFE_SITES = ("same-origin", "none", "same-site")


@dataclass(frozen=True)
class AccessRules:
    """The rules of one server. `names` have no port, `origins` are as browsers write them."""

    names: frozenset[str]
    token: str | None = None
    origins: frozenset[str] = frozenset()

    def check(self, method: str, raw_path: bytes, headers: Mapping[str, str]) -> None:
        """Raise RequestRefused for a request that may not be answered."""
        path = raw_path.decode("latin-1").partition("?")[0]
        if not _PATH.fullmatch(path) or "/.." in path:
            raise RequestRefused(404, "there is no such path")
        host = headers.get("host", "")
        if split_host(host) not in self.names:
            raise RequestRefused(
                403, "this server does not go by that name; edge serve --name NAME adds one"
            )
        origin = headers.get("origin")
        if not self.is_same_origin(origin, host) and origin not in self.origins:
            raise RequestRefused(
                403, "pages of other origins may not ask; edge serve --allow-origin ORIGIN lets one"
            )
        is_named = origin is not None and origin in self.origins
        if headers.get("sec-fetch-site", "none") not in _SAFE_SITES and not is_named:
            raise RequestRefused(403, "pages of other sites may not ask")
        if method == "POST" and (origin is not None or "sec-fetch-site" in headers):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise RequestRefused(415, "a page has to send application/json")
        if self.token is not None and not _OPEN.fullmatch(path) and method != "OPTIONS":
            self._check_token(headers)

    def is_same_origin(self, origin: str | None, host: str) -> bool:
        """Whether a request comes from no page, or from a page of this very server."""
        return origin is None or origin in (f"http://{host}", f"https://{host}")

    def _check_token(self, headers: Mapping[str, str]) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get("x-api-key", "")
        if not hmac.compare_digest(given.strip().encode(), (self.token or "").encode()):
            raise RequestRefused(
                401, "the token is missing or wrong: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def cors_headers(self, origin: str | None) -> dict[str, str]:
        """Headers for a named origin; none for any other."""
        if origin is None or origin not in self.origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Headers": "authorization, content-type, x-api-key",
            "Access-Control-Allow-Methods": "GET, POST",
            "Vary": "Origin",
        }


def split_host(host: str) -> str:
    """The name in a Host header, in small letters, without its port; IPv6 without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, colon, port = host.partition(":")
    return "" if colon and not port.isdigit() else name.lower().rstrip(".")


def own_names(addresses: Iterable[str], extra: Iterable[str]) -> frozenset[str]:
    """Names that a server at `addresses` goes by."""
    found = {"localhost", "127.0.0.1", "::1", *(name.lower().rstrip(".") for name in extra)}
    if any(address in ("0.0.0.0", "::") for address in addresses):
        name = socket.gethostname().lower()
        found |= {name, f"{name.partition('.')[0]}.local", *_interface_addresses()}
    return frozenset(found | {address.lower() for address in addresses})


def _interface_addresses() -> set[str]:
    """Addresses of this machine's interfaces."""
    import psutil

    kinds = (socket.AF_INET, socket.AF_INET6)
    return {
        address.address.partition("%")[0].lower()
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in kinds
    }
