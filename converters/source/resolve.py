"""What the user wrote → a `ModelSpec`: a directory, a GGUF file, or a repository on a hub.

People paste addresses of the hub, or write `hf.co/owner/name:Q4_K_M` and `qwen3:0.6b` as Ollama
takes them, or a file in a repository as `owner/name/file.gguf`.
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.source import checkpoint
from boardfit.converters.source.hub import HubName, fetch
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.models import find_model
from boardfit.edge.errors import InputError, UnsafeInputError, UsageError
from boardfit.edge.files.kind import HEAD_BYTES, UNPICKLE_ADVICE, foreign, open_regular, piece_kind
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import did_you_mean, printable

#: What happens to a head that guesses several tokens ahead (multi-token prediction).
Mtp = Literal["keep", "drop"]
# The embedded model, by name: a first run needs no download.
SAMPLE = "sample"
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
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_model(
    ref: str | Path,
    *,
    progress: Progress | None = None,
    heads_only: bool = False,
    lora: checkpoint.AdapterRequest | None = None,
    mtp: Mtp | None = None,
) -> ModelSpec:
    """Open a model wherever it is.

    `ref` is a Hugging Face directory, a `.gguf` file, a model on the hub in any way that
    `parse_name` understands, or `sample`, the embedded model. An existing path wins over a name.
    `progress` receives (bytes done, bytes in all) during a download. `heads_only` is for a plan: of
    a model on the hub it fetches no weights, and they read as zeros. `lora` is an adapter to merge
    into a checkpoint. `mtp` keeps the head that guesses tokens ahead; unasked, it is dropped.

    Raises InputError that names what was expected instead.
    """
    from boardfit.converters.source.hf import open_directory

    path = Path(ref).expanduser()
    if str(ref) == SAMPLE and not path.exists():
        path = MODEL_DIR
    if path.is_dir():
        return open_directory(path, lora=lora, keep_mtp=mtp == "keep")
    if path.is_file():
        spec = _open_file(path)
        _refuse_options(spec.name, lora, mtp)
        return spec
    name = parse_name(ref) if isinstance(ref, str) and not _is_path(ref) else None
    if isinstance(name, str):
        known = find_model(name)  # the repository of one in the catalogue has its weights
        name = HubName(known.repo) if known is not None and known.exact else None
    if name is None:
        raise _not_found(str(ref), path)
    if name.is_gguf:
        _refuse_options(str(ref), lora, mtp)
        from boardfit.converters.source.hub_gguf import open_gguf_in_repository

        return open_gguf_in_repository(name, progress=progress, heads_only=heads_only)
    directory, commit = fetch(
        name.repo_id, name.revision or "main", progress=progress, heads_only=heads_only
    )
    spec = open_directory(
        directory, repo_id=name.repo_id, revision=commit, lora=lora, keep_mtp=mtp == "keep"
    )
    note = f"{printable(str(ref))} is taken as {name.ref} on the hub"
    return spec if str(ref) == name.ref else replace(spec, notes=(*spec.notes, note))


def _refuse_options(name: str, lora: checkpoint.AdapterRequest | None, mtp: Mtp | None) -> None:
    """Raises for what only a checkpoint takes."""
    if lora is not None:
        raise InputError(
            f"an adapter is merged into a checkpoint's weights, and {printable(name)} is a GGUF "
            "file",
            next_step="give the base model's Hugging Face directory or owner/name with --lora",
        )
    if mtp is not None:
        raise UsageError(
            "--mtp is for a checkpoint; a GGUF file keeps the blocks that it has",
            next_step="leave out --mtp, or give the checkpoint that the file was made of",
        )


def _is_path(ref: str) -> bool:
    """Whether only a path is written so."""
    return ref.startswith((".", "/", "~", "\\")) or ref.endswith(("/", "\\"))


def _open_file(path: Path) -> ModelSpec:
    """Open a file by its first bytes. The name counts only where they decide nothing."""
    name = path.name.lower()
    if piece := piece_kind(path.name):
        raise InputError(f"{path}: {piece.name}", next_step=piece.next_step)
    file, _ = open_regular(path)
    with file:
        head = file.read(HEAD_BYTES)
    if name.endswith(".gguf") or head.startswith(b"GGUF"):
        from boardfit.converters.source.gguf import open_gguf

        return open_gguf(path)
    found = foreign(head)
    is_pickle = found is not None and found.next_step == UNPICKLE_ADVICE
    if is_pickle or (found is None and name.endswith(_PICKLES)):
        raise UnsafeInputError(
            f"{path}: a Python pickle, which can run code when it is opened; boardfit never opens "
            "one",
            next_step=checkpoint.pickle_advice(str(path.parent)),
        )
    if name in checkpoint.ADAPTER_FILES:
        checkpoint.refuse_adapter(path.parent)
    if name.endswith((".safetensors", ".json")) and (found is None or b"{" in head):
        raise InputError(
            f"{path}: one file of a checkpoint; config.json and the tokenizer are needed too",
            next_step=f"give the directory: {path.parent}",
        )
    if found is not None:
        raise InputError(f"{path}: expected a model, got {found.name}", next_step=found.next_step)
    raise InputError(
        f"{path}: neither a Hugging Face directory nor a .gguf file",
        next_step="give a directory with config.json and safetensors, a .gguf file, or owner/name",
    )


def _not_found(ref: str, path: Path) -> InputError:
    hint = ""
    if path.parent.is_dir():
        hint = did_you_mean(path.name, (p.name for p in path.parent.iterdir()))
    return InputError(
        f"{printable(ref)}: no such file or directory, and not a repository id.{hint}",
        next_step="give a directory with config.json and safetensors, a .gguf file, owner/name of "
        "a model on the hub, or a name of the catalogue, such as qwen3-0.6b",
    )


def parse_name(text: str) -> HubName | str | None:
    """What a text names: a repository, or what none is called (a name of the catalogue, a tag of
    Ollama's). None for what can only be a path. Raises InputError for an address of no model.
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
        return found if re.fullmatch(rf"{_PART}(?::[\w.-]+)?", found) else None
    if "://" in text:
        raise InputError(
            f"{printable(text)}: boardfit downloads from a Hugging Face hub only",
            next_step="download the file, then give its path",
        )
    if match := _OLLAMA.fullmatch(text):
        return match["name"]
    match = _REPOSITORY.fullmatch(text)
    if match is not None:
        is_file = match["repo"].lower().endswith(_FILE_ENDINGS) and not match["file"]
        return None if is_file else _from_match(match)
    return text if re.fullmatch(_PART, text) else None


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # brackets without an IPv6 address, characters that NFKC breaks up
        raise InputError(
            f"{printable(address)}: not an address", next_step="copy it from the model's page again"
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
