"""`edge run BUNDLE --embed TEXT…`: texts become vectors, one JSON line each.

edge run BUNDLE --embed "How warm is the board?" "Where is the station?"
edge run BUNDLE --embed < one-text-per-line.txt
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boardfit.edge.engines.target import FoundTarget, find_target
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.files.text import clean_text, decode_text
from boardfit.edge.terminal.output import echo
from boardfit.edge.terminal.progress import Progress, ProgressLine

if TYPE_CHECKING:
    from boardfit.edge.engines.llama.embedding import LlamaEmbedder

SCHEMA = 1
# Far beyond any context.
_MAX_LINE_BYTES = 4 * 1024**2


def open_embedder(
    path: str | Path, *, progress: Progress | None = None, **overrides: Any
) -> FoundTarget[LlamaEmbedder]:
    """Open an embedding model as `open_model` opens others. Raises UnsupportedModelError."""
    from boardfit.edge.engines.llama.embedding import LlamaEmbedder

    found = find_target(path, progress=progress, **overrides)
    if found.engine != "llama_cpp":
        raise UnsupportedModelError(
            f"{found.path}: {found.engine} makes no vectors here",
            next_step="build the embedding model with --format gguf",
        )
    embedder = LlamaEmbedder.open(found.model, found.settings, progress=progress)
    return FoundTarget(found.name, found.path, embedder, found.settings, found.bundle, found.model)


def write_vectors(bundle: str, texts: Sequence[str], overrides: dict[str, Any]) -> None:
    """Write one JSON line per text. Raises UnsupportedModelError for a model without vectors."""
    with closing(ProgressLine("loading")) as line:
        found = open_embedder(bundle, progress=line, **overrides)
    with closing(found.engine) as embedder:
        found.model.check_unchanged()
        for text in read_texts(texts):
            vector, n_tokens = embedder.embed(text)
            record = {
                "schema": SCHEMA, "kind": "boardfit-embedding", "model": found.name,
                "pooling": embedder.pooling, "n_tokens": n_tokens, "vector": vector,
            }  # fmt: skip
            echo(json.dumps(record))


def read_texts(texts: Sequence[str]) -> Iterator[str]:
    """The texts of the command line, or the lines of standard input that are not empty."""
    if texts and list(texts) != ["-"]:
        for text in texts:
            yield clean_text(text, "the text")
        return
    if not texts and sys.stdin.isatty():
        raise InputError(
            "there is no text", next_step='edge run BUNDLE --embed "TEXT", or pipe lines in'
        )
    while line := sys.stdin.buffer.readline(_MAX_LINE_BYTES + 1):
        if len(line) > _MAX_LINE_BYTES:
            raise InputError(f"a line of standard input is longer than {_MAX_LINE_BYTES} bytes")
        if line.strip():
            yield decode_text(line, "standard input").rstrip("\r\n")
