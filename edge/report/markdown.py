"""A report as Markdown: what people paste into a forum or a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge.report.figures import (
    Record,
    Run,
    group_runs,
    key_figures,
    machine_name,
    median,
    peak,
    predicted_rows,
    spread_text,
    verdict,
)
from edge.units import format_bytes, format_seconds, printable


def escape(text: object, limit: int = 120) -> str:
    """Untrusted text (a model's name) as one harmless Markdown cell."""
    # An underscore inside a word (Q4_K) emphasises nothing; anywhere else it may.
    return re.sub(r"([\\`*{}\[\]<>|#!~]|(?<!\w)_|_(?!\w))", r"\\\1", printable(str(text), limit))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def render(records: Sequence[Record], notes: Sequence[str] = ()) -> str:
    """All runs, oldest first. Raises nothing on figures that are missing: they print as `–`."""
    lines: list[str] = []
    for run in group_runs(records):
        lines += [*render_run(run), ""]
    lines += [f"> note: {escape(note)}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def render_run(run: Run) -> list[str]:
    head = run.head
    artifact, machine, settings = head["artifact"], head["machine"], head["settings"]
    lines = [
        f"# {escape(artifact['name'])} on {escape(machine_name(run))}",
        "",
        escape(verdict(run), limit=500),
        "",
    ]
    lines += table(("figure", "value"), key_figures(run))
    lines += ["", "## Speed", ""]
    lines += table(
        ("test", "tokens/s, median (p10–p90)", "TTFT", "slowest token", "repeats"), speed_rows(run)
    )
    lines += ["", "## Memory", ""]
    lines += table(("kind", "peak"), memory_rows(run))
    if loads := run.tests("load"):
        lines += ["", "## Load", ""]
        lines += table(("page cache", "open", "open to first token"), load_rows(loads))
    if rows := predicted_rows(run):
        lines += ["", "## Predicted and measured", ""]
        lines += table(("figure", "plan", "measured", "ratio"), rows)
    lines += ["", "## Conditions", ""]
    lines += [f"- flagged: {escape(flag, 300)}" for flag in flag_lines(run)]
    lines += [] if flag_lines(run) else ["- nothing was flagged"]
    facts = [machine.get(key) for key in ("cpu", "os", "kernel", "arch")]
    cores, ram = machine.get("n_cores"), format_bytes(machine.get("ram_bytes"))
    lines += [
        f"- machine: {escape(', '.join(str(f) for f in facts if f))}; {cores} cores, {ram}",
        f"- engine: {escape(head['engine'].get('name'))} {escape(head['engine'].get('version'))}, "
        f"{settings.get('n_threads')} threads, context {settings.get('n_ctx')}, "
        f"KV {escape(settings.get('kv_type'))}, batch {settings.get('n_batch')}",
        f"- artifact: {format_bytes(artifact.get('n_bytes'))}, sha256 "
        f"`{escape(str(artifact.get('sha256'))[:16])}`",
        f"- edgekit {escape(head['kit'].get('version'))}, {escape(head['time'])}",
        f"- repeat: `{printable(str(head.get('repeat', '–'))).replace('`', '')}`",
    ]
    return lines


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


def speed_rows(run: Run) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for record in run.records:
        kind = record["test"]["kind"]
        if kind == "load":
            continue
        rate = "prefill_tps" if kind == "prefill" else "decode_tps"
        rows.append(
            (
                escape(record["test"]["label"]),
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
            escape(record["test"].get("page_cache") or "–"),
            format_seconds(median(record, "load_s")),
            format_seconds(median(record, "load_to_first_token_s")),
        )
        for record in loads
    ]
