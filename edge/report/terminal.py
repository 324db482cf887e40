"""Print a run in about twelve lines; the Markdown report has all details."""

from __future__ import annotations

from boardfit.edge.report.figures import Run
from boardfit.edge.report.kinds import find_kind
from boardfit.edge.report.rows import flag_lines
from boardfit.edge.units import printable


def run_lines(run: Run) -> list[str]:
    """Verdict, one line per test, the figures that matter, what was flagged."""
    flags = [f"flagged: {printable(flag, 300)}" for flag in flag_lines(run)]
    lines = [*find_kind(run).lines(run), *(["", *flags] if flags else [])]
    return [printable(line, 1000) for line in lines]
