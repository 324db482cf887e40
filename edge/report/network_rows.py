"""Rows of a report about a network that is no language model: latency, not tokens per second."""

from boardfit.edge.report.figures import Figure, Run, Table, median, name_test
from boardfit.edge.units import format_bytes, format_seconds


def latency_text(seconds: float | None) -> str:
    """Format a latency as `12.3 ms`, or as `430 µs` below 1 ms."""
    if seconds is not None and seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return format_seconds(seconds)


def network_verdict(run: Run) -> str:
    """One sentence: how long one inference takes, and how many fit into a second."""
    record = run.records[0]
    latency = median(record, "latency_s")
    name, where = run.head["artifact"]["name"], run.machine_name
    if not latency:
        return f"{name} on {where}: not enough was measured for a verdict."
    threads = run.head["settings"].get("n_threads")
    return (
        f"{name} takes {latency_text(latency)} per inference on {where} "
        f"({1 / latency:.1f} per second, {run.engine_text}"
        f"{f', {threads} threads' if threads else ''})."
    )


LATENCY_HEADER = ("test", "p50", "p95", "p99")


def network_tables(run: Run) -> list[Table]:
    """Latencies, one row per test."""
    names = ("latency_p50_s", "latency_p95_s", "latency_p99_s")
    rows = [
        (name_test(record), *(latency_text(median(record, name)) for name in names))
        for record in run.records
    ]
    return [(LATENCY_HEADER, rows)]


def network_figures(run: Run) -> list[Figure]:
    """The figures that matter, each with its text."""
    record = run.records[0]
    providers = (run.head["engine"].get("details") or {}).get("providers") or ()
    return [
        ("latency, median", latency_text(median(record, "latency_s")), ""),
        ("load", format_seconds(median(record, "load_s")), ""),
        ("peak anonymous memory", format_bytes(run.peak("peak_anon_bytes")), ""),
        ("file", format_bytes(run.head["artifact"].get("n_bytes")), ""),
        ("providers", ", ".join(map(str, providers)) or "–", ""),
    ]
