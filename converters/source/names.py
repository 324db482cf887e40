"""Understand the names by which people call a model that is not on their disk.

They paste addresses of the hub, or write `hf.co/owner/name:Q4_K_M` and `qwen3:0.6b` as Ollama takes
them, or a file in a repository as `owner/name/file.gguf`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from boardfit.edge.errors import InputError
from boardfit.edge.units import printable

# Hub names: letters, digits, `-`, `_`, `.`, at most 96 characters each
# (huggingface_hub's `validate_repo_id`).
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REPOSITORY = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?P<file>(?:/{_PART}){{1,3}}\.gguf)?"
    r"(?:@(?P<revision>[\w./-]{1,128}))?(?::(?P<quant>[\w.-]{1,40}))?"
)
# `name`, `name:tag`, `library/name:tag`, as Ollama has them.
_OLLAMA = re.compile(rf"(?:library/)?(?P<name>{_PART}:[\w.-]{{1,80}})")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
_OLLAMA_HOSTS = ("ollama.com", "www.ollama.com", "registry.ollama.ai", "ollama.ai")
_VIEWS = ("tree", "blob", "resolve", "raw", "commit", "discussions")
_FILE_ENDINGS = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class HubName:
    """A repository, with `file` (a GGUF in it) or `quant` (which of its GGUF files) if named."""

    repo_id: str
    revision: str | None = None
    file: str | None = None
    quant: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.file is not None or self.quant is not None

    @property
    def ref(self) -> str:
        """`owner/name@revision`."""
        return self.repo_id + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class CatalogueName:
    """A name that no repository has: of the catalogue, or a tag of Ollama's."""

    name: str


def parse_name(text: str) -> HubName | CatalogueName | None:
    """What a text names; None for what can only be a path. Raises InputError for an address that is
    no model's.
    """
    text = text.strip()
    place = re.sub(r"^(?:hf|huggingface)://(?:models/)?", "huggingface.co/", text)
    address = place if "://" in place else f"https://{place}"
    host = _split(address).netloc.lower() if re.match(r"[\w.-]+[/:]", place) else ""
    own = _split(os.environ.get("HF_ENDPOINT") or "").netloc.lower()
    if host and host in (*_HUB_HOSTS, own):
        return _from_hub_address(text, address)
    if host in _OLLAMA_HOSTS:
        found = _split(address).path.strip("/").removeprefix("library/")
        return CatalogueName(found) if re.fullmatch(rf"{_PART}(?::[\w.-]+)?", found) else None
    if "://" in text:
        raise InputError(
            f"{printable(text)}: boardfit downloads from a Hugging Face hub only",
            next_step="download the file, then give its path",
        )
    if match := _OLLAMA.fullmatch(text):
        return CatalogueName(match["name"])
    match = _REPOSITORY.fullmatch(text)
    if match is not None:
        is_file = match["repo"].lower().endswith(_FILE_ENDINGS) and not match["file"]
        return None if is_file else _from_match(match)
    return CatalogueName(text) if re.fullmatch(_PART, text) else None


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # brackets without an IPv6 address, characters that NFKC breaks up
        raise InputError(
            f"{printable(address)}: not an address",
            next_step="copy it from the model's page again",
        ) from None


def _from_match(match: re.Match[str]) -> HubName:
    file = match["file"]
    return HubName(match["repo"], match["revision"], file[1:] if file else None, match["quant"])


def _from_hub_address(text: str, address: str) -> HubName:
    parts = [unquote(part) for part in _split(address).path.split("/") if part]
    if parts[:1] in (["datasets"], ["spaces"], ["collections"], ["papers"], ["docs"]):
        raise InputError(
            f"{printable(text)}: an address of {parts[0]}, not of a model",
            next_step="open the model's own page and copy its address",
        )
    view = parts[2] if len(parts) > 3 and parts[2] in _VIEWS else None
    revision = parts[3] if view in ("tree", "blob", "resolve", "raw") else None
    rest = parts[4:] if view else [part for part in parts[2:] if part not in _VIEWS]
    file = "/".join(rest) if rest and rest[-1].lower().endswith(".gguf") else None
    name = "/".join(parts[:2]) + (f"/{file}" if file else "")
    match = _REPOSITORY.fullmatch(name)
    if match is None or len(parts) < 2:
        raise InputError(
            f"{printable(text)}: not the address of a model on the hub",
            next_step="give owner/name, as it stands above the model's page",
        )
    found = _from_match(match)
    plain = None if revision == "main" else revision
    return HubName(found.repo_id, plain or found.revision, found.file, found.quant)
