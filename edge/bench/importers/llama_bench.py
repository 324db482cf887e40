"""`llama-bench -o json` and `-o jsonl` (ggml-org/llama.cpp, tools/llama-bench)."""

from __future__ import annotations

from pathlib import PurePath, PureWindowsPath
from typing import Any

from boardfit.edge.bench.importers.record import (
    ImportedFile,
    ImportedSubject,
    count,
    count_or_none,
    make_record,
    number,
    parse_json,
    text_or_none,
)
from boardfit.edge.errors import InputError

TOOL = "llama-bench"
NOT_MEASURED = ("time to first token", "time between tokens", "load", "raw token times")
MAX_TESTS = 10_000


def can_read(text: str) -> bool:
    head = text.lstrip()[:1]
    return head in ("[", "{") and '"samples_ns"' in text and '"n_gen"' in text


def entries(text: str) -> list[Any]:
    """The tests of a JSON list, or of one object per line."""
    if text.lstrip().startswith("["):
        found = parse_json(text, TOOL)
    else:
        found = [parse_json(line, TOOL) for line in text.splitlines() if line.strip()]
    if not isinstance(found, list) or not found or len(found) > MAX_TESTS:
        raise InputError(f"{TOOL}: expected a list of 1 to {MAX_TESTS} tests")
    return found


def read(text: str, source: ImportedFile) -> list[dict[str, Any]]:
    """One record per test. Raises InputError on anything that llama-bench does not write."""
    return [record(entry, source) for entry in entries(text)]


def record(entry: Any, source: ImportedFile) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("samples_ns"), list):
        raise InputError(f"{TOOL}: a test without samples_ns")
    n_prompt, n_gen = (count(entry.get(key), f"{TOOL}: {key}") for key in ("n_prompt", "n_gen"))
    n_depth = count(entry.get("n_depth", 0), f"{TOOL}: n_depth")
    seconds = [number(ns, f"{TOOL}: samples_ns") * 1e-9 for ns in entry["samples_ns"]]
    if n_prompt and n_gen:  # one time for both: neither rate can be derived
        kind, figures = "end-to-end", [{"end_to_end_s": s} for s in seconds]
    elif n_gen:
        kind, figures = "decode", [{"decode_tps": n_gen / s} for s in seconds]
    elif n_prompt:
        kind, figures = "prefill", [{"prefill_tps": n_prompt / s} for s in seconds]
    else:
        raise InputError(f"{TOOL}: a test of no tokens")
    return make_record(
        subject(entry),
        source,
        kind,
        figures,
        n_prompt=n_prompt,
        n_depth=n_depth,
        n_gen=n_gen,
        time=text_or_none(entry.get("test_time")),
    )


def subject(entry: dict[str, Any]) -> ImportedSubject:
    file = text_or_none(entry.get("model_filename")) or "unknown"
    name = PureWindowsPath(file).stem if "\\" in file else PurePath(file).stem
    kind = text_or_none(entry.get("model_type")) or ""
    return ImportedSubject(
        tool=TOOL,
        name=name,
        quant=kind.split(" ", 2)[2] if kind.count(" ") >= 2 else kind or None,
        version=text_or_none(entry.get("build_commit")),
        build=f"{entry.get('build_number')}, {text_or_none(entry.get('backends'))}",
        n_bytes=count_or_none(entry.get("model_size")),
        n_params=count_or_none(entry.get("model_n_params")),
        cpu=text_or_none(entry.get("cpu_info")),
        n_threads=count_or_none(entry.get("n_threads")),
        n_batch=count_or_none(entry.get("n_batch")),
        kv_type=text_or_none(entry.get("type_k")),
        not_measured=NOT_MEASURED,
    )
