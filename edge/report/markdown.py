"""Render a report as Markdown, for a forum or a pull request."""

import re
from collections.abc import Sequence

from boardfit.edge.report.figures import Record, Run, group_runs, name_clashes
from boardfit.edge.report.kinds import find_kind, key_figures
from boardfit.edge.report.rows import flag_lines, list_sections, provenance
from boardfit.edge.units import printable


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
    kind = find_kind(run)
    name = escape(run.head["artifact"]["name"])
    lines = [
        f"# {name} on {escape(run.machine_name)}",
        "",
        escape(kind.verdict(run), limit=500),
        "",
    ]
    lines += [*table(("figure", "value"), key_figures(run)), "", "## Speed"]
    for header, rows in kind.tables(run):
        lines += ["", *table(header, rows)]
    lines += [f"- {escape(note, 300)}" for note in kind.notes(run)]
    for section in list_sections(run):
        lines += ["", f"## {section.title}", "", *table(section.header, section.rows)]
        lines += ["", escape(section.note, 300)] if section.note else []
    lines += ["", "## Conditions", ""]
    lines += [f"- flagged: {escape(flag, 300)}" for flag in flag_lines(run)]
    if origin := run.imported_note:
        lines.append(f"- {escape(origin, 500)}")
    elif not flag_lines(run):
        lines.append("- nothing was flagged")
    lines += [f"- {name}: {escape(value)}" for name, value in provenance(run)]
    repeat = printable(str(run.head.get("repeat", "–"))).replace("`", "")
    return [*lines, f"- repeat: `{repeat}`"]
