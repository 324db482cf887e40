"""Recognise a file by its first bytes, so that "bad magic" becomes a useful sentence: downloads
go wrong in a few known ways (a log-in page, a Git-LFS pointer, an archive).
"""

import json
import pkgutil
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from boardfit.edge.disk.opened_file import OpenedFile, Source
from boardfit.edge.errors import InputError, UnsafeInputError
from boardfit.edge.units import format_bytes

HEAD_BYTES = 512

UNPICKLE_ADVICE = (
    "boardfit never unpickles. Where you trust the file, convert it with torch: "
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "weights = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "save_file({k: v.contiguous().clone() for k, v in weights.items()}, sys.argv[2], "
    "metadata={'format': 'pt'})\" pytorch_model.bin model.safetensors"
)
_DOWNLOAD_AGAIN = "Download it again, and check the address (log-in, licence to accept)."
_UNPACK = "Unpack it first."


# Names of pieces of one cut file: model.gguf.part1of2, model.gguf-split-a, model.gguf.001.
_PIECE = re.compile(
    r"(?P<whole>.+\.\w+)(?P<end>\.part\d+of\d+|[.-](part|split)-?[a-z0-9]{1,3}|\.\d{2,3})"
)


class FileKind(NamedTuple):
    """What a file is, as a noun phrase, and one sentence that gets the user further."""

    name: str
    next_step: str


_GIVE_OTHER = "Give a GGUF or safetensors model."
# First bytes and the kind that they mean; without a next step in `magics.json`, a pickle's.
_MAGICS = [
    (magic.encode("latin-1"), FileKind(row["name"], row["next_step"] or UNPICKLE_ADVICE))
    for row in json.loads(pkgutil.get_data(__package__, "magics.json") or "")
    for magic in row["magics"]
]


def foreign(head: bytes) -> FileKind | None:
    """The kind of file that begins with `head` (`HEAD_BYTES` of it suffice), or None if unknown."""
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16].lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        return FileKind("a web page or XML document, not a model", _DOWNLOAD_AGAIN)
    if head[4:8] == b"TFL3":
        return FileKind("a TFLite file", _GIVE_OTHER)
    if len(head) > 8 and head[8:9] == b"{" and not any(head[5:8]):
        return FileKind("a safetensors file", "Pass the directory that holds it and its config.")
    if text.startswith(b"{"):
        return FileKind("a JSON document, not a model", _DOWNLOAD_AGAIN)
    if head[257:262] == b"ustar":
        return FileKind("a tar archive", _UNPACK)
    if head and not any(head):
        return FileKind(
            "all zero bytes at its beginning: an interrupted download or copy", _DOWNLOAD_AGAIN
        )
    return None


def piece_kind(name: str) -> FileKind | None:
    """The kind of a file whose name marks it as a piece of a larger one, or None."""
    match = _PIECE.fullmatch(name)
    if match is None:
        return None
    whole, end = match["whole"], match["end"]
    pattern = ".part*" if end.startswith(".part") else re.sub(r"[a-z0-9]+$", "*", end)
    return FileKind(
        "a piece of a file that was cut for the upload",
        f"Join all pieces, in the order of their names: cat {whole}{pattern} > {whole}",
    )


def open_regular(path: Source, *, below: Path | None = None) -> tuple[BinaryIO, int]:
    """Open a regular, non-empty file for reading; returns it and its size in bytes. `below` is the
    folder of a stranger that it must really lie in (`boardfit.edge.disk.input_folder`).

    Raises InputError for what is missing, unreadable, empty, a directory, a pipe or a device
    (opening one must not block); UnsafeInputError for what leads out of `below`.
    """
    if not isinstance(path, OpenedFile):
        path = OpenedFile.open(path, below=below)
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes)", next_step=_DOWNLOAD_AGAIN)
    return path.reader(), size


def read_regular(path: Source, limit: int, *, below: Path | None = None) -> bytes:
    """The content of a regular file. Raises like `open_regular`; UnsafeInputError for a larger
    one.
    """
    file, size = open_regular(path, below=below)
    with file:
        data = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(data) > limit:
        raise UnsafeInputError(
            f"{path}: {format_bytes(size)}, more than the {format_bytes(limit)} that such a file "
            "may have",
            next_step="make sure that it is the file you mean",
        )
    return data


def read_regular_text(path: Source, limit: int, *, below: Path | None = None) -> str:
    r"""The UTF-8 text of a file, with `\n` as line ends. Raises like `read_regular`."""
    data = read_regular(path, limit, below=below)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        got = "UTF-16 text" if is_utf16 else f"not UTF-8 text (byte {error.start})"
        raise InputError(
            f"{path}: {got}; expected UTF-8",
            next_step="save it again as UTF-8 (in PowerShell: Out-File -Encoding utf8), or get "
            "the original file",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
