"""MLPerf LoadGen's `mlperf_log_summary.txt` (mlcommons/inference): percentiles, no samples."""

import re
from typing import Any

from boardfit.edge.bench.importers.record import ImportedFile, ImportedSubject, number
from boardfit.edge.errors import InputError

TOOL = "mlperf-loadgen"
HINT = "mlperf_log_summary.txt"
MENTIONS = ("MLPerf", "loadgen", ":::MLLOG")
NOT_MEASURED = ("prefill", "decode", "single queries (it prints percentiles)", "load", "machine")
_HEAD = "MLPerf Results Summary"
_FIELD = re.compile(r"^\s*([\w .()/+-]+?)\s*:\s*(\S.*?)\s*$", re.MULTILINE)
_PROCESSED = re.compile(r"Processed at least \d+ queries \((\d+)\)")
# Their row → our figure; the first five describe one spread.
_SPREAD = {"median": "50.00 percentile {}", "p90": "90.00 percentile {}", "mean": "Mean {}",
           "minimum": "Min {}", "maximum": "Max {}"}  # fmt: skip
_QUANTILES = {"p50": "50.00", "p90": "90.00", "p95": "95.00", "p99": "99.00"}


def can_read(text: str) -> bool:
    return _HEAD in text and "latency (ns)" in text


def read(text: str, source: ImportedFile) -> list[dict[str, Any]]:
    """One record: latency of a query, or of an answer and its first token."""
    fields = {match[1].lower(): match[2] for match in _FIELD.finditer(text)}
    metrics = {"latency_s": spread_of(fields, "latency (ns)")}
    for name, share in _QUANTILES.items():
        value = seconds(fields, f"{share} percentile latency (ns)")
        metrics[f"latency_{name}_s"] = single(value)
    token = spread_of(fields, "first token latency (ns)")
    kind = "inference"
    if token is not None:
        kind, metrics = "end-to-end", {"end_to_end_s": metrics["latency_s"], "ttft_s": token}
        metrics["tpot_s"] = spread_of(fields, "time per output token (ns)")
    if metrics.get("latency_s", metrics.get("end_to_end_s")) is None:
        raise InputError(f"{TOOL}: no latency percentiles")
    flags = []
    if fields.get("result is", "").upper() != "VALID":
        flags.append(f"LoadGen calls the run {fields.get('result is', 'unfinished')[:40]}")
    processed = _PROCESSED.search(text)
    scenario = f"{fields.get('scenario', '?')}, {processed[1] if processed else '?'} queries"
    name, build = fields.get("sut name", "unknown"), fields.get("scenario")
    subject = ImportedSubject(source, TOOL, name=name, build=build, not_measured=NOT_MEASURED)
    label = f"{kind} {scenario}"
    return [subject.record(kind, [], flags=flags, metrics=metrics, label=label)]


def seconds(fields: dict[str, str], name: str) -> float | None:
    value = fields.get(name.lower())
    return None if value is None else number(value, f"{TOOL}: {name}") * 1e-9


def spread_of(fields: dict[str, str], what: str) -> dict[str, Any] | None:
    """A spread without its number of samples, which the summary does not give for tokens."""
    found = {key: seconds(fields, row.format(what)) for key, row in _SPREAD.items()}
    if found["median"] is None:
        return None
    return {"n": None, **found, "p10": None, "stdev": None}


def single(value: float | None) -> dict[str, Any] | None:
    if value is None:
        return None
    keys = ("median", "mean", "minimum", "maximum")
    return {"n": 1, **dict.fromkeys(keys, value), "p10": value, "p90": value, "stdev": None}
