"""Parse a reference: `registry/repository:tag@sha256:…`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from boardfit.edge.errors import UsageError
from boardfit.edge.units import printable

SHAPE = "registry[:port]/repository[:tag][@sha256:…]"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
# Distribution spec 1.1, "Pulling manifests": names, tags and digests.
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?")


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
