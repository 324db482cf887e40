"""Render a report as Markdown, for a forum or a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from boardfit.edge.report.deadline_rows import (
    ANSWER_HEADER,
    DEADLINE_HEADER,
    answer_row,
    deadline_notes,
    deadline_rows,
    is_deadline_run,
)
from boardfit.edge.report.figures import (
    Record,
    Run,
    group_runs,
    imported_note,
    key_figures,
    machine_name,
    name_clashes,
    predicted_rows,
    verdict,
)
from boardfit.edge.report.network_rows import LATENCY_HEADER, is_network_run, latency_row
from boardfit.edge.report.rows import (
    SPEED_HEADER,
    energy_method,
    energy_rows,
    flag_lines,
    load_rows,
    memory_rows,
    speed_rows,
)
from boardfit.edge.units import format_bytes, printable


def escape(text: object, limit: int = 120) -> str:
    """Untrusted text (a model's name) as one harmless Markdown cell."""
    # An underscore inside a word (Q4_K) emphasises nothing; anywhere else it may.
    return re.sub(r"([\\`*{}\[\]<>|#!~]|(?<!\w)_|_(?!\w))", r"\\\1", printable(str(text), limit))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(map(escape, row)) + " |" for row in rows]


def render(records: Sequence[Record], notes: Sequence[str] = ()) -> str:
    """All runs, oldest first. Raises nothing on figures that are missing: they print as `–`."""
    lines: list[str] = []
    runs = group_runs(records)
    for run in runs:
        lines += [*render_run(run), ""]
    notes = [*name_clashes(runs), *notes]
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
    if is_network_run(run):
        lines += table(LATENCY_HEADER, [latency_row(r) for r in run.records])
    elif is_deadline_run(run):
        lines += table(DEADLINE_HEADER, deadline_rows(run))
        lines += ["", *table(ANSWER_HEADER, [answer_row(r) for r in run.records])]
        lines += [f"- {escape(note, 300)}" for note in deadline_notes(run)]
    else:
        lines += table(SPEED_HEADER, speed_rows(run))
    lines += ["", "## Memory", ""]
    lines += table(("kind", "peak"), memory_rows(run))
    if rows := energy_rows(run):
        lines += ["", "## Energy", ""]
        lines += table(("test", "power", "per token"), rows)
        lines += ["", escape(energy_method(run), 300)]
    if loads := run.tests("load"):
        lines += ["", "## Load", ""]
        lines += table(("page cache", "open", "open to first token"), load_rows(loads))
    if predictions := predicted_rows(run):
        lines += ["", "## Predicted and measured", ""]
        lines += table(("figure", "plan", "measured", "ratio"), predictions)
    lines += ["", "## Conditions", ""]
    lines += [f"- flagged: {escape(flag, 300)}" for flag in flag_lines(run)]
    if origin := imported_note(run):
        lines.append(f"- {escape(origin, 500)}")
    elif not flag_lines(run):
        lines.append("- nothing was flagged")
    facts = [machine.get(key) for key in ("cpu", "os", "kernel", "arch")]
    cores, ram = machine.get("n_cores"), format_bytes(machine.get("ram_bytes"))
    lines += [
        f"- machine: {escape(', '.join(str(f) for f in facts if f))}; {cores} cores, {ram}",
        f"- engine: {escape(head['engine'].get('name'))} {escape(head['engine'].get('version'))}, "
        f"{settings.get('n_threads')} threads, context {settings.get('n_ctx')}, "
        f"KV {escape(settings.get('kv_type'))}, batch {settings.get('n_batch')}",
        f"- artifact: {format_bytes(artifact.get('n_bytes'))}, sha256 "
        f"`{escape(str(artifact.get('sha256'))[:16])}`",
        f"- boardfit {escape(head['kit'].get('version'))}, {escape(head['time'])}",
        f"- repeat: `{printable(str(head.get('repeat', '–'))).replace('`', '')}`",
    ]
    return lines
