"""Render a report as Markdown, for a forum or a pull request."""

import re
from collections.abc import Sequence

from boardfit.edge.report.figures import Record, Run, group_runs, name_clashes
from boardfit.edge.report.kinds import find_kind, key_figures
from boardfit.edge.report.rows import energy_method, energy_rows, flag_lines, load_rows, memory_rows
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
    kind, head = find_kind(run), run.head
    artifact, machine = head["artifact"], head["machine"]
    lines = [f"# {escape(artifact['name'])} on {escape(run.machine_name)}", ""]
    lines += [escape(kind.verdict(run), limit=500), ""]
    lines += table(("figure", "value"), key_figures(run))
    lines += ["", "## Speed"]
    for header, cells in kind.tables(run):
        lines += ["", *table(header, cells)]
    lines += [f"- {escape(note, 300)}" for note in kind.notes(run)]
    lines += ["", "## Memory", ""]
    lines += table(("kind", "peak"), memory_rows(run))
    if rows := energy_rows(run):
        lines += ["", "## Energy", ""]
        lines += table(("test", "power", "per token"), rows)
        lines += ["", escape(energy_method(run), 300)]
    if loads := run.tests("load"):
        lines += ["", "## Load", ""]
        lines += table(("page cache", "open", "open to first token"), load_rows(loads))
    if found := run.find_predictions():
        lines += ["", "## Predicted and measured", ""]
        cells = [
            (f"{name}, {unit}", f"{plan:,.0f}", f"{got:,.0f}", f"{got / plan:.2f}")
            for name, unit, plan, got in found
        ]
        lines += table(("figure", "plan", "measured", "ratio"), cells)
    lines += ["", "## Conditions", ""]
    lines += [f"- flagged: {escape(flag, 300)}" for flag in flag_lines(run)]
    if origin := run.imported_note:
        lines.append(f"- {escape(origin, 500)}")
    elif not flag_lines(run):
        lines.append("- nothing was flagged")
    facts = [machine.get(key) for key in ("cpu", "os", "kernel", "arch")]
    cores, ram = machine.get("n_cores"), format_bytes(machine.get("ram_bytes"))
    lines += [
        f"- machine: {escape(', '.join(str(f) for f in facts if f) or '–')}; "
        f"{cores or '–'} cores, {ram}",
        f"- engine: {escape(run.engine_text)}, {escape(run.settings_text)}",
        f"- artifact: {format_bytes(artifact.get('n_bytes'))}, sha256 "
        f"`{escape(str(artifact.get('sha256') or '–')[:16])}`",
        f"- boardfit {escape(head['kit'].get('version'))}, {escape(head['time'])}",
        f"- repeat: `{printable(str(head.get('repeat', '–'))).replace('`', '')}`",
    ]
    return lines
