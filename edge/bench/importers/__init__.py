"""Convert other tools' results into boardfit records, so that one table can hold all.

One file per tool: `can_read(text)` recognizes its output, `read(text, source)` returns records.
What a tool did not measure stays null and is named in the record's `imported` entry. No trace is
invented: an imported figure cannot be derived again, and `edge report --verify` says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from boardfit.edge.bench.importers import executorch, genai, litert_lm, llama_bench, mlperf, ollama
from boardfit.edge.bench.importers.record import ImportedFile
from boardfit.edge.bench.store import KIND, Results, joined, parse_results, read_file
from boardfit.edge.errors import InputError


class Importer(Protocol):
    """A module of this package."""

    TOOL: str

    def can_read(self, text: str) -> bool: ...

    def read(self, text: str, source: ImportedFile) -> list[dict[str, Any]]: ...


IMPORTERS: tuple[Importer, ...] = (llama_bench, ollama, executorch, litert_lm, genai, mlperf)


class Found(NamedTuple):
    """What one file held: our own results, or another tool's."""

    tool: str | None
    results: Results


def read_any(path: Path, most: int | None = None) -> Found:
    """Read a result file of `edge bench` or of another tool, recognized by what it holds; of ours
    with more than `most` lines only the newest runs.

    Raises InputError if it is neither, or broken.
    """
    data = read_file(path)
    if f'"{KIND}"'.encode() in data[:MAX_SNIFF]:
        return Found(None, parse_results(path, data, most))
    text = data.decode("utf-8", "replace")
    for importer in IMPORTERS:
        if importer.can_read(text):
            source = ImportedFile.from_path(path, data)
            return Found(importer.TOOL, Results(tuple(importer.read(text, source)), ()))
    if not data.strip() or data.lstrip()[:1] == b"{":
        return Found(None, parse_results(path, data))  # says what is wrong with it
    known = ", ".join(importer.TOOL for importer in IMPORTERS)
    raise InputError(
        f"{path}: these are no results that boardfit reads",
        next_step=f"results of edge bench, or of: {known}",
    )


# Our lines have sorted keys: `kind` comes after traces only in files of version 1 and 2.
MAX_SNIFF = 64 * 1024 * 1024


def read_all(paths: list[Path], most: int | None = None) -> Results:
    """All files in one. Raises InputError."""
    return joined([read_any(path, most).results for path in paths])
