"""A repository on a model hub → a local directory → `ModelSpec`.

Only what a conversion needs is fetched: safetensors, JSON, tokenizer, templates, the card. Files
come through `huggingface_hub` (HF_ENDPOINT, HF_TOKEN and its stored log-in are honoured). A copy
in its own cache is used when it is complete. Otherwise files go to our cache, because the package
has stopped keeping unfinished files (1.x deletes them), and a checkpoint is one large file on a
slow line: there an unfinished file is `NAME.part` and continues where it ended.

A plan needs the headers of weights only. They go to a cache of their own, as files of the full
size with a hole in place of the data.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from boardfit.converters.documents import MODULE_FILES, MODULE_FOLDER
from boardfit.converters.source.checkpoint import (
    ADAPTER,
    choose_shards,
    pickle_advice,
)
from boardfit.edge.bundle.bundle import sha256_file
from boardfit.edge.disk.atomic import write_atomic
from boardfit.edge.disk.input_folder import is_file_below
from boardfit.edge.disk.rooted import open_to_append
from boardfit.edge.disk.verified import cache_directory
from boardfit.edge.errors import (
    DoesNotFitError,
    EdgeError,
    InputError,
    IntegrityError,
    UnsafeInputError,
    UnsupportedModelError,
)
from boardfit.edge.fields import Whole, shown
from boardfit.edge.files import gguf, safetensors
from boardfit.edge.process.patience import call_while_moving, call_within
from boardfit.edge.terminal.progress import Advance, Progress
from boardfit.edge.units import format_bytes, printable

DEFAULT_ENDPOINT = "https://huggingface.co"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,200}")
_MODULE = re.compile(rf"{MODULE_FOLDER.pattern}/({'|'.join(map(re.escape, MODULE_FILES))})")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: The library hands over ten million bytes at once: this is a line of 17 kB/s.
_STALL_S = 600
#: How long the hub may take to list a repository or to send a header, and how long a list may be.
#: One of 10,000 files has 3 MB.
_ANSWER_S = 180
_MAX_LISTING_BYTES = 64 << 20
_TIMEOUT_S = 20
_BLOCK_BYTES = 1 << 16
#: Most headers fit into the first; the vocabulary of a GGUF needs more.
_HEAD_BYTES = 1 << 18
_MAX_HEAD_BYTES = 128 << 20
#: No file system of today has a longer file.
_MAX_FILE_BYTES = 16 << 40
_DOCUMENTS = (".json", ".model", ".jinja", ".txt")
_NOT_OURS = ("consolidated", "adapter_", "pytorch_model", "tf_model", "flax_model", "optimizer")


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
class RemoteFile:
    """One file of a repository; `sha256` is known for large files only."""

    name: str
    size: int
    sha256: str | None


def fetch(
    repo_id: str,
    revision: str = "main",
    *,
    progress: Progress | None = None,
    heads_only: bool = False,
) -> tuple[Path, str]:
    """The folder of a repository's conversion files, fetched where they are not here yet, and its
    commit. Of the weights, `heads_only` fetches the headers: a plan needs no more.

    Raises InputError when the hub cannot be reached or does not give the repository out,
    DoesNotFitError when the disk is too small, IntegrityError when a file arrives damaged.
    """
    home = hub_home(repo_id)
    note = home / "refs" / re.sub(r"[^\w.-]", "_", revision)
    try:
        commit, siblings = list_repository(repo_id, revision)
    except Unreachable as error:
        known = note.read_text().strip() if note.is_file() else revision
        directory = home / known
        if _COMMIT.fullmatch(known) and (directory / ".complete").is_file():
            return directory, known
        if (found := in_hub_cache(repo_id, revision, ("config.json",))) is not None:
            _require_whole(repo_id, found, error)
            return found, found.name
        if directory.is_dir():
            raise _incomplete(repo_id, "it was broken off", error) from None
        raise InputError(
            f"{repo_id}: no such directory here, and the hub cannot be reached ({error})",
            next_step=f"on a machine with network: hf download {repo_id} --local-dir DIR, then "
            "give edge that directory",
        ) from None
    files = choose_files(repo_id, siblings)
    directory = bring_files(repo_id, commit, files, progress=progress, heads_only=heads_only)
    if directory == home / commit and not heads_only:
        write_atomic(directory / ".complete", b"")
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, commit.encode())
    return directory, commit


def hub_home(repo_id: str) -> Path:
    """Our folder of a repository, with a folder for each commit."""
    return cache_directory() / "hub" / repo_id.replace("/", "--")


def bring_files(
    repo_id: str,
    commit: str,
    files: Sequence[RemoteFile],
    *,
    progress: Progress | None,
    heads_only: bool,
) -> Path:
    """The folder that has these files: of huggingface_hub's cache, or of ours, downloaded now."""
    cached = in_hub_cache(repo_id, commit, [file.name for file in files])
    if cached is not None:
        return cached
    directory = hub_home(repo_id) / commit
    if not heads_only:
        download_files(repo_id, commit, files, directory, progress)
    elif not all(is_whole(directory / file.name, file) for file in files):
        # No build looks here.
        directory = cache_directory() / "hub-heads" / repo_id.replace("/", "--") / commit
        download_heads(repo_id, commit, files, directory)
    return directory


def _require_whole(repo_id: str, directory: Path, unreachable: Unreachable) -> None:
    """Raises InputError for a snapshot of a cache that lacks weights or the tokenizer."""
    try:
        choose_shards(directory)
    except InputError as error:
        if type(error) is not InputError:  # an adapter, pickles: no download makes it whole
            raise
        raise _incomplete(repo_id, printable(str(error), 300), unreachable) from None
    if not any(is_file_below(directory, name) for name in _TOKENIZERS):
        raise _incomplete(repo_id, "the tokenizer is missing", unreachable)


def _incomplete(repo_id: str, cause: str, unreachable: Unreachable) -> InputError:
    return InputError(
        f"{repo_id}: its download in the cache is incomplete ({cause}), and the hub cannot be "
        f"reached ({unreachable})",
        next_step="go online once and run the same command again, or: hf download " + repo_id,
    )


def choose_files(repo_id: str, siblings: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files that a conversion needs, small ones first. Raises InputError when the repository
    holds no safetensors, with what it holds instead.
    """
    plain = [file for file in siblings if _PLAIN_NAME.fullmatch(file.name)]
    ours = [file for file in plain if not file.name.startswith(_NOT_OURS)]
    weights = [file for file in ours if file.name.endswith(".safetensors")]
    weights = [file for file in weights if file.name.startswith("model")] or weights
    if not weights:
        _refuse_without_weights(repo_id, [file.name for file in plain])
    documents = [f for f in ours if f.name.endswith(_DOCUMENTS) or f.name == "README.md"]
    # What sentence-transformers does with the vectors of an embedding model.
    modules = [f for f in siblings if _MODULE.fullmatch(f.name)]
    return sorted(documents + weights + modules, key=lambda file: (file.size, file.name))


class Unreachable(Exception):
    """The hub does not answer, or is not to be asked."""


class TooLongError(Exception):
    """More bytes come than were announced."""


def list_repository(repo_id: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """The commit and the files of a repository. Raises Unreachable where the hub does not answer,
    UnsafeInputError for an answer that is none, InputError for what it does not give out.
    """
    url = f"{_endpoint()}/api/models/{repo_id}/revision/{quote(revision, safe='')}"
    # With what is known of each file.
    body = _ask(repo_id, url, _MAX_LISTING_BYTES + 1, revision, params={"blobs": "true"})
    try:
        if len(body) > _MAX_LISTING_BYTES:
            raise ValueError(f"it has more than {format_bytes(_MAX_LISTING_BYTES)}")
        listing = json.loads(body)
        commit, siblings = listing["sha"], listing.get("siblings") or ()
        files = [_remote_file(sibling) for sibling in siblings]
    except EdgeError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnsafeInputError(
            f"{repo_id}: the hub's answer is no list of a repository: {_first_line(error)}",
            next_step="check HF_ENDPOINT",
        ) from None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise UnsafeInputError(f"{repo_id}: the hub names an impossible commit {commit!r:.60}")
    return commit, files


def read_start(url: str, most: int, headers: Mapping[str, str], params: Any) -> bytes:
    """At most `most` bytes from the start of the body at `url`. Raises the errors of
    huggingface_hub, which speaks through requests, httpx or httpx2.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    session: Any = get_session()
    ours = build_hf_headers(token=_token(), library_name="boardfit")
    options: dict[str, Any] = {
        "headers": {**ours, **headers}, "params": params, "timeout": _TIMEOUT_S
    }  # fmt: skip
    if is_httpx := callable(getattr(session, "stream", None)):  # a flag in requests
        opened = session.stream("GET", url, follow_redirects=True, **options)
    else:
        opened = session.get(url, stream=True, **options)
    body = bytearray()
    with opened as answer:
        read = answer.iter_bytes if is_httpx else answer.iter_content
        for block in read(_BLOCK_BYTES):
            body += block
            if len(body) >= most:
                break
        # Where all three libraries keep a body that was read: the cause of an error is in it.
        answer._content = bytes(body)
        hf_raise_for_status(answer)
    return bytes(body[:most])


def _ask(
    repo_id: str,
    url: str,
    most: int,
    revision: str = "main",
    headers: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
) -> bytes:
    """An answer of the hub in time, as `read_start`. Raises as `list_repository`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise Unreachable("HF_HUB_OFFLINE is set")
    try:
        return call_within(lambda: read_start(url, most, headers or {}, params), _ANSWER_S)
    except GatedRepoError:
        raise InputError(
            f"{repo_id}: the owner gives it out on request only",
            next_step=f"accept the licence at {_endpoint()}/{repo_id}, then log in: hf auth login, "
            "or set HF_TOKEN",
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{repo_id}: no revision {printable(revision)!r}") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{repo_id}: no such directory here, and no such repository on {_endpoint()} (or a "
            "private one)",
            next_step="check the name; for a private one log in: hf auth login, or set HF_TOKEN",
        ) from None
    except OfflineModeIsEnabled:
        raise Unreachable("offline mode is on") from None
    except ImportError as error:
        raise proxy_error(error) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        raise Unreachable(f"HTTP status {status}") from None
    except _transport_errors() as error:
        raise Unreachable(_first_line(error)) from None


def proxy_error(error: ImportError) -> InputError:
    """A proxy that the HTTP library has no code for: SOCKS comes with a package of its own."""
    names = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
    found = [n for name in names for n in (name, name.lower()) if os.environ.get(n)]
    which = f" ({' and '.join(found)})" if found else ""
    return InputError(
        f"the hub cannot be reached through the proxy{which}: {_first_line(error)}",
        next_step="install the package socksio, or name an http:// proxy, or unset the variable",
    )


def _remote_file(sibling: Any) -> RemoteFile:
    """One file of a listing. Raises UnsafeInputError for a name, size or digest that is none."""
    lfs = sibling.get("lfs")
    name, size, digest = sibling["rfilename"], sibling.get("size") or 0, lfs and lfs["sha256"]
    is_digest = digest is None or (isinstance(digest, str) and _SHA256.fullmatch(digest))
    if not isinstance(name, str) or not Whole().accepts(size) or not is_digest:
        raise UnsafeInputError(
            f"the hub lists {shown(name)} with size {shown(size)} and sha256 {shown(digest)}; "
            "a name, a whole number and 64 hex digits are expected"
        )
    return RemoteFile(name, size, digest)


def in_hub_cache(repo_id: str, revision: str, names: Sequence[str]) -> Path | None:
    """A snapshot in huggingface_hub's own cache that has all these files, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=os.environ.get("HF_HUB_CACHE"),
            allow_patterns=list(names),
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    directory = Path(str(found))
    return directory if all((directory / name).is_file() for name in names) else None


def download_files(
    repo_id: str,
    commit: str,
    files: Sequence[RemoteFile],
    directory: Path,
    progress: Progress | None,
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in files)
    _require_space(repo_id, files, directory)
    done = 0
    for file in files:
        target = directory / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not is_whole(target, file):
            advance = functools.partial(_advance, progress, done, total)
            _download_file(repo_id, commit, file, target, advance)
        done += file.size
        if progress:
            progress(done, total)


def is_whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def download_heads(repo_id: str, commit: str, files: Sequence[RemoteFile], directory: Path) -> None:
    """Fetch documents whole, and of weights the header. Raises as `fetch`."""
    weights = [file for file in files if file.name.endswith((".safetensors", ".gguf"))]
    download_files(repo_id, commit, [f for f in files if f not in weights], directory, None)
    for file in weights:
        target = directory / file.name
        if not is_whole(target, file):
            target.parent.mkdir(parents=True, exist_ok=True)
            _download_head(repo_id, commit, file, target)


def _download_head(repo_id: str, commit: str, file: RemoteFile, target: Path) -> None:
    """A file of the full size that holds the header. What is no header is left for the reader."""
    from huggingface_hub import hf_hub_url

    if file.size > _MAX_FILE_BYTES:
        raise UnsafeInputError(
            f"{repo_id}: the hub gives {file.name} a size of {format_bytes(file.size)}",
            next_step="check HF_ENDPOINT",
        )
    url = hf_hub_url(repo_id, file.name, revision=commit, endpoint=_endpoint())
    part = target.with_name(target.name + ".part")
    n_bytes = min(_HEAD_BYTES, file.size)
    while True:
        # A server that does not know ranges sends all of it: reading ends here all the same.
        headers = {"Range": f"bytes=0-{n_bytes - 1}", "Accept-Encoding": "identity"}
        try:
            start = _ask(repo_id, url, n_bytes, headers=headers)
        except Unreachable as error:
            raise InputError(
                f"{repo_id}: the header of {file.name} cannot be had: {error}",
                next_step="run the same command again",
            ) from None
        with open_to_append(part) as raw:
            raw.seek(0)
            raw.write(start)
            raw.truncate(file.size)
        if n_bytes >= min(file.size, _MAX_HEAD_BYTES) or _header_end(part, file.name) <= n_bytes:
            os.replace(part, target)
            return
        n_bytes = min(4 * n_bytes, file.size)


def _header_end(path: Path, name: str) -> float:
    """Where the data of weights begins; infinite for a header that is not whole."""
    read = gguf.read_header if name.endswith(".gguf") else safetensors.read_header
    try:
        return read(path).data_offset
    except EdgeError:
        return math.inf


def _download_file(
    repo_id: str, commit: str, file: RemoteFile, target: Path, advance: Advance
) -> None:
    """One file through `NAME.part`: continued, checked, renamed."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        disable_progress_bars,
    )

    part = target.with_name(target.name + ".part")
    disable_progress_bars("huggingface_hub.http_get")
    have = part.stat().st_size if part.is_file() else 0
    if have > file.size:
        part.unlink()
        have = 0
    with open_to_append(part) as raw:
        counted = _CountedFile(raw, advance, file.size)
        try:
            call_while_moving(
                lambda: http_get(
                    hf_hub_url(repo_id, file.name, revision=commit, endpoint=_endpoint()),
                    counted,  # type: ignore[arg-type]
                    resume_size=have,
                    headers=build_hf_headers(token=_token(), library_name="boardfit"),
                    expected_size=file.size,
                    displayed_filename=file.name,
                ),
                lambda: counted.n_written,
                _STALL_S,
            )
        except ImportError as error:
            raise proxy_error(error) from None
        except TooLongError:
            part.unlink()
            raise UnsafeInputError(
                f"{repo_id}: the hub sends more of {file.name} than the "
                f"{format_bytes(file.size)} that it announced; what came was removed",
                next_step="check HF_ENDPOINT, or fetch the repository in another way",
            ) from None
        except _transport_errors() as error:
            raise InputError(
                f"{repo_id}: the download of {file.name} broke off at "
                f"{format_bytes(raw.tell())} of {format_bytes(file.size)}: {_first_line(error)}",
                next_step="run the same command again; it continues where this one ended",
            ) from None
        raw.flush()
        os.fsync(raw.fileno())
    size = part.stat().st_size
    if size != file.size or (file.sha256 and sha256_file(part) != file.sha256):
        part.unlink()
        raise IntegrityError(
            f"{repo_id}: {file.name} arrived damaged ({size} bytes of {file.size}, or a wrong "
            "sha256); it was removed",
            next_step="run the same command again",
        )
    os.replace(part, target)


class _CountedFile:
    """A file that reports its length after every write, and takes no more than was announced."""

    def __init__(self, raw: Any, advance: Advance, most: int) -> None:
        self._raw, self._advance, self._most = raw, advance, most
        self.n_written = 0

    def write(self, data: bytes) -> int:
        if self._raw.tell() + len(data) > self._most:
            raise TooLongError
        written: int = self._raw.write(data)
        self.n_written += written
        self._advance(self._raw.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _advance(progress: Progress | None, done: int, total: int, file_bytes: int) -> None:
    if progress:
        progress(done + file_bytes, total)


def _require_space(repo_id: str, files: Sequence[RemoteFile], directory: Path) -> None:
    # Files may be here already, whole or in part.
    paths = ((f, directory / f.name, directory / f"{f.name}.part") for f in files)
    here = ((f, next((p for p in both if p.is_file()), None)) for f, *both in paths)
    needed = sum(max(0, f.size - (p.stat().st_size if p else 0)) for f, p in here)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DoesNotFitError(
            f"{repo_id}: {format_bytes(needed)} to download, {format_bytes(free)} free in "
            f"{directory}",
            shortfall_bytes=needed - free,
            next_step="make room, or set BOARDFIT_CACHE to a directory on a larger disk",
        )


def _refuse_without_weights(repo_id: str, names: Sequence[str]) -> None:
    if "adapter_config.json" in names:
        raise UnsupportedModelError(
            f"{repo_id}: {ADAPTER}",
            next_step=f"download it (hf download {repo_id} --local-dir DIR), then merge it into "
            "its base: edge build BASE --lora DIR",
        )
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        raise InputError(
            f"{repo_id}: holds GGUF files ({', '.join(ggufs[:3])}{', …' if ggufs[3:] else ''}), "
            "not a checkpoint",
            next_step=f"name one of them: {repo_id}/{ggufs[0]}",
        )
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        raise UnsafeInputError(
            f"{repo_id}: the weights are Python pickles, which can run code when they are opened; "
            "boardfit never opens them",
            next_step=pickle_advice(repo_id, repo_id.partition("/")[2] + "-safetensors"),
        )
    raise InputError(f"{repo_id}: no safetensors in the repository")


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the errors that a broken line raises. They are those of the HTTP library that
    huggingface_hub uses (httpx2 from 2.x, httpx in 1.x, requests before), or OSError's kin.
    """
    found: list[type[Exception]] = [OSError]
    for library, error in (
        ("httpx2", "HTTPError"),
        ("httpx", "HTTPError"),
        ("requests", "RequestException"),
    ):
        # Only a library that the hub has loaded can be the one that raised.
        if library in sys.modules:
            found.append(getattr(sys.modules[library], error))
    return tuple(found)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return printable(lines[0]) if lines else type(error).__name__
