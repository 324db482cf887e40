"""What the user wrote → a `ModelSpec`: a directory, a GGUF file, or a repository on a hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from boardfit.converters.sample import MODEL_DIR
from boardfit.converters.source.checkpoint import (
    ADAPTER_FILES,
    AdapterRequest,
    pickle_advice,
    refuse_adapter,
)
from boardfit.converters.source.names import CatalogueName, HubName, parse_name
from boardfit.converters.spec import ModelSpec
from boardfit.device_profiles.models import find_model
from boardfit.edge.errors import InputError, UnsafeInputError, UsageError
from boardfit.edge.files.kind import (
    HEAD_BYTES,
    UNPICKLE_ADVICE,
    foreign,
    open_regular,
    piece_kind,
)
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import did_you_mean, printable

#: What happens to a head that guesses several tokens ahead (multi-token prediction).
Mtp = Literal["keep", "drop"]
# The embedded model, by name: a first run needs no download.
SAMPLE = "sample"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_model(
    ref: str | Path,
    *,
    progress: Progress | None = None,
    heads_only: bool = False,
    lora: AdapterRequest | None = None,
    mtp: Mtp | None = None,
) -> ModelSpec:
    """Open a model wherever it is.

    `ref` is a Hugging Face directory, a `.gguf` file, a model on the hub as `owner/name[@revision]`
    or in any other way that `names` understands, or `sample`, the embedded model. An existing path
    wins over a name. `progress` receives (bytes done, bytes in all) during a download. `heads_only`
    is for a plan: of a model on the hub it fetches no weights, and they read as zeros. `lora` is an
    adapter to merge into a checkpoint. `mtp` keeps or drops the head of a checkpoint that guesses
    several tokens ahead; unasked, it is dropped.

    Raises InputError that names what was expected instead.
    """
    path = Path(ref).expanduser()
    if str(ref) == SAMPLE and not path.exists():
        path = MODEL_DIR
    if path.is_dir():
        from boardfit.converters.source.hf import open_directory

        return open_directory(path, lora=lora, keep_mtp=mtp == "keep")
    if path.is_file():
        spec = _open_file(path)
        _refuse_options(spec.name, lora, mtp)
        return spec
    name = parse_name(ref) if isinstance(ref, str) and not _is_path(ref) else None
    if isinstance(name, CatalogueName):
        known = find_model(name.name)  # the repository of one in the catalogue has its weights
        name = HubName(known.repo) if known is not None and known.exact else None
    if name is None:
        raise _not_found(str(ref), path)
    if name.is_gguf:
        _refuse_options(str(ref), lora, mtp)
        from boardfit.converters.source.hub_gguf import open_gguf_in_repository

        return open_gguf_in_repository(name, progress=progress, heads_only=heads_only)
    from boardfit.converters.source.hub import open_repository

    spec = open_repository(
        name.ref,
        progress=progress,
        heads_only=heads_only,
        lora=lora,
        keep_mtp=mtp == "keep",
    )
    note = f"{printable(str(ref))} is taken as {name.ref} on the hub"
    return spec if str(ref) == name.ref else replace(spec, notes=(*spec.notes, note))


def _refuse_options(name: str, lora: AdapterRequest | None, mtp: Mtp | None) -> None:
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
            next_step=pickle_advice(str(path.parent)),
        )
    if name in ADAPTER_FILES:
        refuse_adapter(path.parent)
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
