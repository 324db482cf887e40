"""Convert other tools' results into boardfit records, so that one table can hold all.

One file per tool: `can_read(text)` recognizes its output, `read(text, name)` gives readings. What a
tool did not measure stays null and is named in the record's `imported` entry. No trace is
invented: an imported figure cannot be derived again, and `edge report --verify` says so.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from boardfit.edge.bench.importers.record import ImportedFile, make_records
from boardfit.edge.bench.importers.text import decode_text
from boardfit.edge.bench.store import KIND, Results, joined, parse_results, read_file
from boardfit.edge.errors import InputError

IMPORTERS = ("llama_bench", "llama_timings", "ollama", "executorch", "litert_lm", "genai", "mlperf")


def load_importers() -> list[Any]:
    """One module per tool. `HINT` names what it reads; one of `MENTIONS` is likely in its text."""
    return [import_module(f"{__name__}.{name}") for name in IMPORTERS]


class Found(NamedTuple):
    """What one file held: our own results, or another tool's."""

    tool: str | None
    results: Results


def read_any(path: Path, most: int | None = None) -> Found:
    """Read a result file of `edge bench` or of another tool, recognized by what it holds; of ours
    with more than `most` lines only the newest runs. Raises InputError.
    """
    data = read_file(path)
    if f'"{KIND}"'.encode() in data[:MAX_SNIFF]:
        return Found(None, parse_results(path, data, most))
    text = decode_text(data)
    importers = load_importers()
    for importer in importers:
        if not importer.can_read(text):
            continue
        source = ImportedFile.from_path(path, data)
        records = make_records(importer.TOOL, source, importer.read(text, source.name))
        return Found(importer.TOOL, Results(records, ()))
    likely = [importer for importer in importers if any(m in text for m in importer.MENTIONS)]
    first = data.lstrip().partition(b"\n")[0].strip()
    # A bare brace begins a document of another kind: each of our results is a line.
    if not data.strip() or (first[:1] == b"{" and first != b"{" and not likely):
        return Found(None, parse_results(path, data))  # says what is wrong with it
    hints = "; ".join(f"{importer.TOOL} ({importer.HINT})" for importer in likely or importers)
    raise InputError(
        f"{path}: these are no results that boardfit reads",
        next_step=f"of these it reads: {hints}" if likely else f"edge bench, or: {hints}",
    )


# Our lines have sorted keys: `kind` comes after traces only in files of version 1 and 2.
MAX_SNIFF = 64 * 1024 * 1024


def read_all(paths: list[Path], most: int | None = None) -> Results:
    """All files in one. Raises InputError."""
    return joined([read_any(path, most).results for path in paths])
