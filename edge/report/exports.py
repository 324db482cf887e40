"""Results for other tools: CSV for a spreadsheet, JSON as `llama-bench -o json` writes it."""

import csv
import functools
import io
import json
import statistics
from collections.abc import Sequence
from typing import Any

from boardfit.device_profiles.toml_parser import decode_toml
from boardfit.edge.disk.data_files import read_text_beside
from boardfit.edge.report.figures import Record, median


def to_csv(records: Sequence[Record]) -> str:
    """One row per test, medians of the figures; empty where nothing was measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    text = read_text_beside(__file__, "csv_columns.toml")
    columns = decode_toml(text)
    places, names = columns["facts"], columns["medians"]["names"]
    writer.writerow([*places, *names, "flags"])
    for record in records:
        facts = [cell(_find(record, place.split("."))) for place in places.values()]
        figures = [median(record, name) for name in names]
        flags = cell("; ".join(map(str, record.get("flags") or [])))
        writer.writerow([*facts, *("" if f is None else f"{f:.12g}" for f in figures), flags])
    return out.getvalue()


def cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe (OWASP, CSV injection)."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value


def _find(record: Record, path: Sequence[str]) -> Any:
    start: Any = record
    return functools.reduce(lambda value, key: (value or {}).get(key), path, start)


def to_llama_bench(records: Sequence[Record]) -> str:
    """The prefill and decode tests with stored repetitions, as `llama-bench -o json` names them."""
    found = [entry for record in records if (entry := llama_bench_entry(record)) is not None]
    return json.dumps(found, indent=2) + "\n"


def llama_bench_entry(record: Record) -> dict[str, Any] | None:
    test, settings = record["test"], record["settings"]
    kind = test.get("kind")
    tokens = test.get({"prefill": "n_prompt", "decode": "n_gen"}.get(kind, ""))
    metric = f"{kind}_tps"
    rates = [float(f[metric]) for f in record.get("figures") or [] if f.get(metric)]
    if not rates or not tokens:
        return None
    nanoseconds = [round(tokens / rate * 1e9) for rate in rates]
    engine, artifact, machine = record["engine"], record["artifact"], record["machine"]
    return {
        "build_commit": str(engine.get("version")),
        "build_number": 0,
        "cpu_info": machine.get("cpu") or machine.get("model") or "",
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": artifact["name"],
        "model_type": f"{artifact.get('arch') or 'model'} ?B {engine.get('quant')}",
        "model_size": artifact.get("n_bytes") or 0,
        "model_n_params": (engine.get("details") or {}).get("n_params") or 0,
        "n_batch": settings.get("n_batch") or 0,
        "n_threads": settings.get("n_threads") or 0,
        "type_k": settings.get("kv_type") or "",
        "type_v": settings.get("kv_type") or "",
        "n_prompt": tokens if kind == "prefill" else 0,
        "n_gen": tokens if kind == "decode" else 0,
        "n_depth": test.get("n_depth") or 0,
        "test_time": record["time"],
        "avg_ns": round(statistics.fmean(nanoseconds)),
        "stddev_ns": round(_stdev(nanoseconds)),
        "avg_ts": statistics.fmean(rates),
        "stddev_ts": _stdev(rates),
        "samples_ns": nanoseconds,
        "samples_ts": rates,
    }


def _stdev(values: Sequence[float]) -> float:
    """The sample's, 0 below two values, as llama-bench has it."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
