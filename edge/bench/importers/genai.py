"""Results of onnxruntime-genai's `benchmark/python/benchmark_e2e.py`: means or medians, one row per
size of prompt and answer.

Older versions write CSV with headings like `Token Generation Throughput (tps)`, then CSV with
`metrics.token_generation_throughput_tps`, newer ones JSON with that in an object. All are read.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from boardfit.edge.bench.importers.record import ImportedFile, ImportedSubject, Sizes, count, number
from boardfit.edge.bench.importers.text import csv_rows, json_objects
from boardfit.edge.errors import InputError

TOOL = "onnxruntime-genai"
HINT = "benchmark_e2e.py -o FILE"
MENTIONS = ("onnxruntime", "benchmark_e2e", "Token Generation")
NOT_MEASURED = ("single repetitions (it writes means)", "load", "threads", "machine")
PREFILL, DECODE = "prompt_processing_throughput_tps", "token_generation_throughput_tps"
WHOLE, FIRST_MS = "wall_clock_time_s", "time_to_first_token_ms"
MAX_ROWS = 10_000


def column(heading: str) -> str:
    """`metrics.wall_clock_time_s` and `Wall Clock Time (s)` → `wall_clock_time_s`."""
    return re.sub(r"[^a-z0-9]+", "_", heading.rpartition(".")[2].lower()).strip("_")


def is_header(fields: list[str]) -> bool:
    return {PREFILL, DECODE} <= {column(field) for field in fields}


def can_read(text: str) -> bool:
    return (f'"{PREFILL}"' in text and f'"{DECODE}"' in text) or any(
        is_header(line.split(",")) for line in text.splitlines() if "hroughput" in line
    )


def rows(text: str) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, or objects of a JSON list with their leaves by the last name of their path."""
    if f'"{PREFILL}"' in text:
        for entry in json_objects(text, TOOL):
            yield dict(leaves(entry))
        return
    for row in csv_rows(text, is_header, TOOL):
        yield {column(key): value for key, value in row.items() if key and value}


def leaves(entry: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if not isinstance(entry, Mapping) or depth > 4:
        raise InputError(f"{TOOL}: an object expected")
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from leaves(value, depth + 1)
        else:
            yield column(str(key)), value


def read(text: str, source: ImportedFile) -> list[dict[str, Any]]:
    """Prefill, decode and the whole of every row. Raises InputError on a row that is broken."""
    found = []
    for place, row in enumerate(rows(text), 1):
        if place > MAX_ROWS:
            raise InputError(f"{TOOL}: more than {MAX_ROWS} rows")
        found += read_row(row, source, f"{TOOL}: row {place}")
    if not found:
        raise InputError(f"{TOOL}: no rows")
    return found


def read_row(row: Mapping[str, Any], source: ImportedFile, where: str) -> list[dict[str, Any]]:
    if count(row.get("batch_size", 1), f"{where}: batch size") != 1:
        raise InputError(f"{where}: only batch size 1 compares with a chat on a board")
    n_prompt = count(row.get("prompt_length"), f"{where}: prompt length")
    n_gen = count(row.get("tokens_generated"), f"{where}: tokens generated")
    absent = () if FIRST_MS in row else ("time to first token",)
    subject = ImportedSubject(
        source,
        TOOL,
        name=_text(row, "full_name") or source.name,
        quant=_text(row, "precision"),
        version=_text(row, "package_version"),
        build=_text(row, "device"),
        not_measured=(*absent, *NOT_MEASURED),
    )

    def read_number(name: str) -> float:
        return number(row.get(name), f"{where}: {name}")

    figures = {
        "prefill": {"prefill_tps": read_number(PREFILL)},
        "decode": {"decode_tps": read_number(DECODE)},
        "end-to-end": {"end_to_end_s": read_number(WHOLE)} if WHOLE in row else {},
    }
    if FIRST_MS in row:
        figures["end-to-end"]["ttft_s"] = read_number(FIRST_MS) * 1e-3
    time = _text(row, "trigger_date")
    sizes = dict.fromkeys(figures, Sizes(n_prompt, n_gen))
    sizes["decode"] = Sizes(n_prompt, n_gen, n_prompt)
    return [
        subject.record(kind, [found], sizes[kind], time=time)
        for kind, found in figures.items()
        if found
    ]


def _text(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    return str(value)[:200] if value else None
