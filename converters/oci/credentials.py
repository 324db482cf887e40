"""Read registry credentials that `docker login` or `podman login` stored.

Files are read in the order $REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json (~/.docker), podman's
$XDG_RUNTIME_DIR/containers/auth.json. Nothing is ever written.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boardfit.edge.errors import InputError
from boardfit.edge.process.child import TimeoutExpired, decode_output, run_child

_HELPER = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_S = 30
# Where Docker files its own registry.
_ALIASES = {"registry-1.docker.io": ("https://index.docker.io/v1/", "docker.io", "index.docker.io")}


@dataclass(frozen=True)
class Credentials:
    """User and password, or an identity token (OAuth2 refresh token)."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(registry: str) -> Credentials | None:
    """What is stored for a registry; None when nothing is: it is asked anonymously then. Raises
    InputError when a file that is there cannot be used.
    """
    names = (registry, f"https://{registry}", *_ALIASES.get(registry, ()))
    for path in config_files():
        document = _read(path)
        for name in names:
            if found := _find_entry(document, name, path):
                return found
    return None


def config_files() -> Iterator[Path]:
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    yield Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers/auth.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: credentials cannot be read: {error}") from None
    return document if isinstance(document, dict) else {}


def _find_entry(document: dict[str, Any], name: str, path: Path) -> Credentials | None:
    helpers, entries = document.get("credHelpers"), document.get("auths")
    helper = helpers.get(name) if isinstance(helpers, dict) else None
    entry = entries.get(name) if isinstance(entries, dict) else None
    if helper is None and isinstance(entry, dict) and not (entry.get("auth") or entry.get(
        "identitytoken"
    )):  # fmt: skip
        helper = document.get("credsStore")
    if isinstance(helper, str):
        return _ask_helper(helper, name)
    if not isinstance(entry, dict):
        return None
    try:
        pair = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InputError(
            f"{path}: the entry of {name} is damaged", next_step=f"docker login {name}"
        ) from None
    user, _, password = pair.partition(":")
    found = Credentials(user, password.rstrip("\0"), str(entry.get("identitytoken") or ""))
    return found if found.user or found.identity_token else None


def _ask_helper(helper: str, name: str) -> Credentials | None:
    """docker-credential-HELPER get, the protocol of docker/docker-credential-helpers."""
    if not _HELPER.fullmatch(helper):
        raise InputError(f"the credential helper {helper!r:.80} is not a program's name")
    try:
        command = [f"docker-credential-{helper}", "get"]
        done = run_child(command, input=name.encode(), timeout_s=_HELPER_S)
    except (OSError, TimeoutExpired) as error:
        raise InputError(
            f"the credential helper docker-credential-{helper} does not answer: {error}",
            next_step=f"install it, or take it out of the configuration and docker login {name}",
        ) from None
    if done.returncode != 0:
        return None  # it knows nothing of this registry
    try:
        answer = json.loads(decode_output(done.stdout))
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"docker-credential-{helper} answers something else than JSON") from None
    if user == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(user, secret)
