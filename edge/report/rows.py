"""Table rows of one run as plain text; each format escapes them in its own way."""

from __future__ import annotations

from collections.abc import Sequence

from edge.report.figures import Record, Run, median, peak, spread_text
from edge.units import format_bytes, format_seconds


def flag_lines(run: Run) -> list[str]:
    """Every flag once, with the tests that it fell on."""
    tests: dict[str, list[str]] = {}
    for record in run.records:
        for flag in record.get("flags", []):
            tests.setdefault(str(flag), []).append(str(record["test"].get("label", "?")))
    return [
        flag if len(labels) == len(run.records) else f"{flag} ({', '.join(labels)})"
        for flag, labels in tests.items()
    ]


SPEED_HEADER = ("test", "tokens/s, median (p10–p90)", "TTFT", "slowest token", "repeats")


def speed_rows(run: Run) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for record in run.records:
        kind = record["test"]["kind"]
        if kind == "load":
            continue
        rate = "prefill_tps" if kind == "prefill" else "decode_tps"
        rows.append(
            (
                str(record["test"].get("label", "?")),
                spread_text(record, rate),
                format_seconds(median(record, "ttft_s")),
                format_seconds(median(record, "itl_max_s")),
                str(record["test"].get("n_repeats", "–")),
            )
        )
    return rows


def memory_rows(run: Run) -> list[tuple[str, str]]:
    baseline = run.head.get("baseline") or {}
    return [
        ("anonymous (what a board dies of)", format_bytes(peak(run, "peak_anon_bytes"))),
        ("file pages (mapped weights, can be dropped)", format_bytes(peak(run, "peak_file_bytes"))),
        ("PSS", format_bytes(peak(run, "peak_pss_bytes"))),
        ("RSS", format_bytes(peak(run, "peak_rss_bytes"))),
        ("swap grown by", format_bytes(peak(run, "swap_grown_bytes"))),
        ("RSS before the engine was opened", format_bytes(baseline.get("rss_bytes"))),
    ]


def load_rows(loads: Sequence[Record]) -> list[tuple[str, ...]]:
    return [
        (
            str(record["test"].get("page_cache") or "–"),
            format_seconds(median(record, "load_s")),
            format_seconds(median(record, "load_to_first_token_s")),
        )
        for record in loads
    ]
