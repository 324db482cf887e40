"""Results of onnxruntime-genai's `benchmark/python/benchmark_e2e.py`: means or medians, one row per
size of prompt and answer.

Older versions write CSV with headings like `Token Generation Throughput (tps)`, then CSV with
`metrics.token_generation_throughput_tps`, newer ones JSON with that in an object. All are read.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from boardfit.edge.bench.importers.record import Sizes, ToolReading, ToolSubject, count, number
from boardfit.edge.bench.importers.text import csv_rows, json_objects
from boardfit.edge.errors import InputError

TOOL = "onnxruntime-genai"
HINT = "benchmark_e2e.py -o FILE"
MENTIONS = ("onnxruntime", "benchmark_e2e", "Token Generation")
PREFILL, DECODE = "prompt_processing_throughput_tps", "token_generation_throughput_tps"
# Their column → our figure, and its unit.
_FIGURES = {
    PREFILL: ("prefill_tps", 1.0),
    DECODE: ("decode_tps", 1.0),
    "wall_clock_time_s": ("end_to_end_s", 1.0),
    "time_to_first_token_ms": ("ttft_s", 1e-3),
}


def name_column(heading: str) -> str:
    """`metrics.wall_clock_time_s` and `Wall Clock Time (s)` → `wall_clock_time_s`."""
    return re.sub(r"[^a-z0-9]+", "_", heading.rpartition(".")[2].lower()).strip("_")


def is_header(fields: list[str]) -> bool:
    return {PREFILL, DECODE} <= {name_column(field) for field in fields}


def can_read(text: str) -> bool:
    return (f'"{PREFILL}"' in text and f'"{DECODE}"' in text) or any(
        is_header(line.split(",")) for line in text.splitlines() if "hroughput" in line
    )


def list_rows(text: str) -> Iterator[dict[str, Any]]:
    """Rows of a CSV, or objects of a JSON list with what their objects hold."""
    if f'"{PREFILL}"' not in text:
        for row in csv_rows(text, is_header, TOOL):
            yield {name_column(key): value for key, value in row.items() if key and value}
        return
    for entry in json_objects(text, TOOL):
        parts = [v if isinstance(v, Mapping) else {key: v} for key, v in entry.items()]
        yield {name_column(str(key)): value for part in parts for key, value in part.items()}


def read(text: str, name: str) -> Iterator[ToolReading]:
    """The readings of every row. Raises InputError on a row that is broken."""
    for part, row in enumerate(list_rows(text), 1):
        where = f"{TOOL}: row {part}"
        if count(row.get("batch_size", 1), f"{where}: batch size") != 1:
            raise InputError(f"{where}: only batch size 1 compares with a chat on a board")
        n_prompt = count(row.get("prompt_length"), f"{where}: prompt length")
        n_gen = count(row.get("tokens_generated"), f"{where}: tokens generated")
        words = ("full_name", "precision", "package_version", "device", "trigger_date")
        named, quant, version, build, time = (
            str(row[word])[:200] if row.get(word) else None for word in words
        )
        figures = {
            figure: number(row.get(column), f"{where}: {column}") * unit
            for column, (figure, unit) in _FIGURES.items()
            if column in row or column in (PREFILL, DECODE)
        }
        subject = ToolSubject(named or name, quant, version, build, is_mean=True)
        yield ToolReading(subject, figures, Sizes(n_prompt, n_gen), time, part)
