"""`llama-bench` with any `-o`: md, csv, json, jsonl and sql (ggml-org/llama.cpp)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from boardfit.edge.bench.importers.record import (
    Sizes,
    ToolReading,
    ToolSubject,
    count,
    file_name,
    number,
    text_or_none,
    whole_or_none,
)
from boardfit.edge.bench.importers.text import csv_rows, json_objects
from boardfit.edge.errors import InputError

TOOL = "llama-bench"
HINT = "any -o; -o json keeps most"
MENTIONS = ("llama-bench", "| t/s", "avg_ts")
_COLUMNS = {"n_gen", "n_prompt", "avg_ts"}
_HEADER = re.compile(r"^(?=[^\n]*\bn_gen\b)(?=[^\n]*\bavg_ts\b)[\w,\" ]+$", re.MULTILINE)
_INSERT = re.compile(r"INSERT INTO \w+ \(([\w, ]+)\) VALUES \(((?:'[^'\n]*'[, ]*)+)\)")
_TABLE = re.compile(r"^\s*\|(?=[^\n]*\|\s*test\s*\|)(?=[^\n]*\|\s*t/s\s*\|)[^\n]+$", re.MULTILINE)
_TEST = re.compile(r"(?:pp(?P<p>\d{1,9}))?\+?(?:tg(?P<g>\d{1,9}))?(?:\s*@\s*d(?P<d>\d{1,9}))?")
_BUILD = re.compile(r"^build: (\w{1,40}) \((\d{1,9})\)", re.MULTILINE)


def can_read(text: str) -> bool:
    return (
        ('"n_gen"' in text and ('"samples_ns"' in text or '"avg_ts"' in text))
        or _HEADER.search(text) is not None
        or _INSERT.search(text) is not None
        or _TABLE.search(text) is not None
    )


def read(text: str, _name: str) -> Iterator[ToolReading]:
    """The readings of every test in the file. Raises InputError."""
    for part, entry in enumerate(entries(text)):
        yield from read_entry(entry, part)


def entries(text: str) -> Iterator[Mapping[str, Any]]:
    """The tests with the tool's own column names, in every output format."""
    for entry in json_objects(text, TOOL) if '"n_gen"' in text else ():
        if "n_gen" in entry:
            yield entry
    if _HEADER.search(text):
        yield from csv_rows(text, lambda fields: set(fields) >= _COLUMNS, TOOL)
    for match in _INSERT.finditer(text):
        names, values = match[1].split(","), re.findall(r"'([^']*)'", match[2])
        if len(names) != len(values):
            raise InputError(f"{TOOL}: {len(names)} columns and {len(values)} values in its SQL")
        yield dict(zip((name.strip() for name in names), values, strict=True))
    yield from table_entries(text)


def table_entries(text: str) -> Iterator[dict[str, Any]]:
    """The rows of Markdown tables. They have no file's name, and sizes are rounded."""
    build = _BUILD.search(text)
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip(" *`") for cell in line.strip().strip("|").split("|")]
        if _TABLE.match(line):
            columns = cells
        elif not line.lstrip().startswith("|"):
            columns = []
        elif columns and len(cells) == len(columns) and cells[0].strip(":- "):
            row = dict(zip(columns, cells, strict=True))
            test = _TEST.fullmatch(row["test"])
            if test is None or not (test["p"] or test["g"]):
                raise InputError(f"{TOOL}: pp512 or tg128 expected, got {row['test'][:40]!r}")
            yield {
                "n_prompt": test["p"] or 0,
                "n_gen": test["g"] or 0,
                "n_depth": test["d"] or 0,
                "avg_ts": row["t/s"].split(" ")[0],
                "model_filename": row.get("model"),
                "model_type": row.get("model"),
                "backends": row.get("backend"),
                "n_threads": row.get("threads"),
                "n_batch": row.get("n_batch"),
                "type_k": row.get("type_k"),
                "build_commit": build[1] if build else None,
                "build_number": build[2] if build else None,
            }


def read_entry(entry: Mapping[str, Any], part: int) -> Iterator[ToolReading]:
    n_prompt, n_gen = (count(entry.get(key), f"{TOOL}: {key}") for key in ("n_prompt", "n_gen"))
    n_depth = count(entry.get("n_depth") or 0, f"{TOOL}: n_depth")
    if not n_prompt and not n_gen:
        raise InputError(f"{TOOL}: a test of no tokens")
    samples = entry.get("samples_ns")
    if isinstance(samples, list):
        seconds = [number(ns, f"{TOOL}: samples_ns") * 1e-9 for ns in samples]
    else:
        seconds = [(n_prompt + n_gen) / number(entry.get("avg_ts"), f"{TOOL}: avg_ts")]
    time, sizes = text_or_none(entry.get("test_time")), Sizes(n_prompt, n_gen, n_depth)
    subject = read_subject(entry)
    for s in seconds:
        if n_prompt and n_gen:  # one time for both: neither rate can be derived
            figures = {"end_to_end_s": s}
        else:
            figures = {"decode_tps": n_gen / s} if n_gen else {"prefill_tps": n_prompt / s}
        yield ToolReading(subject, figures, sizes, time, part)


def read_subject(entry: Mapping[str, Any]) -> ToolSubject:
    file = text_or_none(entry.get("model_filename")) or "unknown"
    kind = text_or_none(entry.get("model_type")) or ""
    build = (whole_or_none(entry.get("build_number")), text_or_none(entry.get("backends")))
    return ToolSubject(
        file_name(file).removesuffix(".gguf"),
        quant=kind.split(" ", 2)[2] if kind.count(" ") >= 2 else kind or None,
        version=text_or_none(entry.get("build_commit")),
        build=", ".join(str(part) for part in build if part) or None,
        n_bytes=whole_or_none(entry.get("model_size")),
        n_params=whole_or_none(entry.get("model_n_params")),
        cpu=text_or_none(entry.get("cpu_info")),
        n_threads=whole_or_none(entry.get("n_threads")),
        n_batch=whole_or_none(entry.get("n_batch")),
        kv_type=text_or_none(entry.get("type_k")),
        is_mean=not isinstance(entry.get("samples_ns"), list),
    )
