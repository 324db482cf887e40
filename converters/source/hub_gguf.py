"""One GGUF model out of a repository that holds several: by its file's name, or by its quant."""

import re
from collections.abc import Sequence
from pathlib import Path

from boardfit.converters.source import hub
from boardfit.converters.source.gguf import open_gguf
from boardfit.converters.spec import ModelSpec
from boardfit.edge.disk.input_folder import is_file_below
from boardfit.edge.errors import InputError
from boardfit.edge.terminal.progress import Progress
from boardfit.edge.units import did_you_mean, printable

_SAFE = re.compile(r"(?:[A-Za-z0-9_][\w.-]{0,200}/){0,3}[A-Za-z0-9_][\w.-]{0,200}\.gguf")
_SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_NO_MODEL = re.compile(r"(?:^|/|[-._])(?:mmproj|imatrix|lora)(?:[-._]|$)", re.IGNORECASE)


def open_gguf_in_repository(
    name: hub.HubName, *, progress: Progress | None = None, heads_only: bool = False
) -> ModelSpec:
    """Fetch one GGUF of a repository, all its parts, and describe it. `heads_only` fetches what
    a plan needs, as `hub.fetch` does.

    Raises InputError when the hub cannot be reached and the file is not here, or when no file or
    more than one is meant.
    """
    revision = name.revision or "main"
    try:
        commit, siblings = hub.list_repository(name.repo_id, revision)
    except hub.Unreachable as error:
        return open_gguf(_find_here(name, str(error)))
    files = choose_gguf(name, siblings)
    directory = hub.bring_files(
        name.repo_id, commit, files, progress=progress, heads_only=heads_only
    )
    return open_gguf(directory / files[0].name)


def choose_gguf(name: hub.HubName, siblings: Sequence[hub.RemoteFile]) -> list[hub.RemoteFile]:
    """The one GGUF that is meant, as its parts in order. Raises InputError with the choice."""
    models = [s for s in siblings if _SAFE.fullmatch(s.name) and not _NO_MODEL.search(s.name)]
    names = sorted(file.name for file in models)
    if name.file is not None:
        chosen = [n for n in names if name.file in (n, n.rpartition("/")[2])]
    else:
        chosen = [n for n in names if _has_quant(n, name.quant or "")]
    stems = {_SPLIT.sub(r"\1", n) for n in chosen}
    if len(stems) != 1:
        wanted = name.file or name.quant or ""
        what = f"{len(stems)} files are" if stems else "no file is"
        shown = ", ".join(names[:8]) + (", …" if names[8:] else "")
        raise InputError(
            f"{name.repo_id}: {what} {printable(wanted)}{did_you_mean(wanted, names)}",
            next_step=f"name one file as {name.repo_id}/FILE: {shown}"
            if names
            else "the repository holds no GGUF; give owner/name of the checkpoint",
        )
    stem = stems.pop()
    parts = [file for file in models if _SPLIT.sub(r"\1", file.name) == stem]
    return sorted(parts, key=lambda file: file.name)


def _has_quant(file: str, quant: str) -> bool:
    """Whether a file's name has this quant as a whole word: `Q4_K` is not `Q4_K_M`."""
    base = _SPLIT.sub(r"\1.gguf", file.rpartition("/")[2])
    pattern = rf"(?:^|[-._]){re.escape(quant)}\.gguf\Z"
    return re.search(pattern, base, re.IGNORECASE) is not None


def _find_here(name: hub.HubName, why: str) -> Path:
    """An earlier download of the file. Raises InputError with the way to get it."""
    commits = sorted(path for path in hub.hub_home(name.repo_id).glob("*") if path.name != "refs")
    for commit in commits:
        names = [str(path.relative_to(commit)) for path in sorted(commit.rglob("*.gguf"))]
        if files := [hub.RemoteFile(n, 0, None) for n in names if is_file_below(commit, n)]:
            return commit / choose_gguf(name, files)[0].name
    if name.file is not None:
        cached = hub.in_hub_cache(name.repo_id, name.revision or "main", [name.file])
        if cached is not None:
            return cached / name.file
    pattern = name.file or f"--include '*{name.quant}*.gguf'"
    raise InputError(
        f"{name.repo_id}: {name.file or name.quant} is not here, and the hub cannot be reached "
        f"({why})",
        next_step=f"on a machine with network: hf download {name.repo_id} {pattern} "
        "--local-dir DIR, then give edge the file",
    )
