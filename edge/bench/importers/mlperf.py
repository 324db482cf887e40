"""MLPerf LoadGen's `mlperf_log_summary.txt` (mlcommons/inference): percentiles, no samples."""

import re
from collections.abc import Iterator
from typing import Any

from boardfit.edge.bench.importers.record import ToolReading, ToolSubject, number
from boardfit.edge.errors import InputError

TOOL = "mlperf-loadgen"
HINT = "mlperf_log_summary.txt"
MENTIONS = ("MLPerf", "loadgen", ":::MLLOG")
_HEAD = "MLPerf Results Summary"
_FIELD = re.compile(r"^\s*([\w .()/+-]+?)\s*:\s*(\S.*?)\s*$", re.MULTILINE)
_PROCESSED = re.compile(r"Processed at least \d+ queries \((\d+)\)")
# Their row → our entry of a spread.
_SPREAD = {"median": "50.00 percentile {}", "p90": "90.00 percentile {}", "mean": "Mean {}",
           "minimum": "Min {}", "maximum": "Max {}"}  # fmt: skip
_QUANTILES = {"p50": "50.00", "p90": "90.00", "p95": "95.00", "p99": "99.00"}


def can_read(text: str) -> bool:
    return _HEAD in text and "latency (ns)" in text


def read(text: str, _name: str) -> Iterator[ToolReading]:
    """One reading: latency of a query, or of an answer and its first token."""
    fields = {match[1].lower(): match[2] for match in _FIELD.finditer(text)}
    whole = find_spread(fields, "latency (ns)")
    token = find_spread(fields, "first token latency (ns)")
    if whole is None:
        raise InputError(f"{TOOL}: no latency percentiles")
    metrics: dict[str, Any] = {}
    if token is None:
        kind, metrics["latency_s"] = "inference", whole
        for name, share in _QUANTILES.items():
            value = seconds(fields, f"{share} percentile latency (ns)")
            keys = ("median", "mean", "minimum", "maximum", "p10", "p90")
            single = None if value is None else {"n": 1, **dict.fromkeys(keys, value)}
            metrics[f"latency_{name}_s"] = single
    else:
        per_token = find_spread(fields, "time per output token (ns)")
        kind, metrics = "end-to-end", {"end_to_end_s": whole, "ttft_s": token, "tpot_s": per_token}
    result = fields.get("result is", "unfinished")
    flags = () if result.upper() == "VALID" else (f"LoadGen calls the run {result[:40]}",)
    processed, scenario = _PROCESSED.search(text), fields.get("scenario")
    subject = ToolSubject(fields.get("sut name", "unknown"), build=scenario, is_mean=True)
    label = f"{kind} {scenario or '?'}, {processed[1] if processed else '?'} queries"
    yield ToolReading(subject, {}, metrics=metrics, flags=flags, label=label, kind=kind)


def seconds(fields: dict[str, str], name: str) -> float | None:
    value = fields.get(name.lower())
    return None if value is None else number(value, f"{TOOL}: {name}") * 1e-9


def find_spread(fields: dict[str, str], what: str) -> dict[str, Any] | None:
    """A spread without its number of samples, which the summary does not give for tokens."""
    found = {key: seconds(fields, row.format(what)) for key, row in _SPREAD.items()}
    return None if found["median"] is None else {"n": None, **found, "p10": None, "stdev": None}
