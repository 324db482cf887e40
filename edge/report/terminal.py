"""Print a run in about twelve lines; the Markdown report has all details."""

from __future__ import annotations

from collections.abc import Sequence

from boardfit.edge.report.deadline_rows import deadline_lines, is_deadline_run
from boardfit.edge.report.figures import Run, key_figures, median, spread_text, verdict
from boardfit.edge.report.network_rows import is_network_run, network_lines
from boardfit.edge.report.rows import flag_lines
from boardfit.edge.units import format_seconds, printable


def run_lines(run: Run) -> list[str]:
    """Verdict, one line per test, the figures that matter, what was flagged."""
    flags = [f"flagged: {printable(flag, 300)}" for flag in flag_lines(run)]
    if is_network_run(run) or is_deadline_run(run):
        lines = network_lines(run) if is_network_run(run) else deadline_lines(run)
        return [*lines, *(["", *flags] if flags else [])]
    rows = [("test", "tokens/s (p10–p90)", "TTFT", "slowest token")]
    for record in run.records:
        kind = record["test"]["kind"]
        if kind == "load":
            continue
        rows.append(
            (
                str(record["test"]["label"]),
                spread_text(record, "prefill_tps" if kind == "prefill" else "decode_tps"),
                format_seconds(median(record, "ttft_s")),
                format_seconds(median(record, "itl_max_s")),
            )
        )
    figures = [(name, text) for name, text in key_figures(run) if "tokens/s" not in text]
    lines = [printable(verdict(run), 400), "", *align_columns(rows), "", *align_columns(figures)]
    return [*lines, *(["", *flags] if flags else [])]


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell, two spaces apart."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
