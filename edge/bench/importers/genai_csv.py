"""The CSV of onnxruntime-genai's `benchmark/python/benchmark_e2e.py`: means, one row per size.

Columns are named in two ways: `Token Generation Throughput (tps)` in older files and
`metrics.token_generation_throughput_tps` in newer ones. Both are read.
"""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from edge.bench.importers.record import Source, Subject, count, make_record, number
from edge.errors import InputError

TOOL = "onnxruntime-genai"
NOT_MEASURED = (
    "repetitions (it prints means)", "time to first token", "load", "threads", "machine",
)  # fmt: skip
PREFILL, DECODE = "prompt_processing_throughput_tps", "token_generation_throughput_tps"
WHOLE = "wall_clock_time_s"
MAX_ROWS = 10_000


def column(heading: str) -> str:
    """`metrics.wall_clock_time_s` and `Wall Clock Time (s)` → `wall_clock_time_s`."""
    return re.sub(r"[^a-z0-9]+", "_", heading.rpartition(".")[2].lower()).strip("_")


def is_it(text: str) -> bool:
    first = text.lstrip("\ufeff \r\n").split("\n", 1)[0]
    return {PREFILL, DECODE} <= {column(heading) for heading in first.split(",")}


def read(text: str, source: Source) -> list[dict[str, Any]]:
    """Prefill, decode and the whole of every row. Raises InputError on a row that is broken."""
    found = []
    for number_, row in enumerate(csv.DictReader(io.StringIO(text.lstrip("\ufeff"))), 2):
        if number_ > MAX_ROWS:
            raise InputError(f"{TOOL}: more than {MAX_ROWS} rows")
        values = {column(key): value for key, value in row.items() if key and value}
        found += read_row(values, source, f"{TOOL}: row {number_}")
    if not found:
        raise InputError(f"{TOOL}: a heading without rows")
    return found


def read_row(row: dict[str, str], source: Source, where: str) -> list[dict[str, Any]]:
    if count(row.get("batch_size", "1"), f"{where}: batch size") != 1:
        raise InputError(f"{where}: only batch size 1 compares with a chat on a board")
    n_prompt = count(row.get("prompt_length"), f"{where}: prompt length")
    n_gen = count(row.get("tokens_generated"), f"{where}: tokens generated")
    subject = Subject(
        tool=TOOL,
        name=row.get("full_name") or source.name,
        quant=row.get("precision"),
        version=row.get("package_version"),
        build=row.get("device") or row.get("execution_provider"),
        not_measured=NOT_MEASURED,
    )

    def one(kind: str, name: str, key: str, n_depth: int = 0) -> dict[str, Any]:
        value = number(row.get(key), f"{where}: {key}")
        return make_record(
            subject,
            source,
            kind,
            [{name: value}],
            n_prompt=0 if kind == "decode" else n_prompt,
            n_depth=n_depth,
            n_gen=0 if kind == "prefill" else n_gen,
            time=row.get("trigger_date"),
        )

    found = [one("prefill", "prefill_tps", PREFILL), one("decode", "decode_tps", DECODE, n_prompt)]
    if WHOLE in row:
        found.append(one("end-to-end", "end_to_end_s", WHOLE))
    return found
