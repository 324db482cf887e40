"""A race as a table: one row per entrant, medians, fastest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from boardfit.edge.bench.workloads import Test
from boardfit.edge.race.agreement import EntrantAgreement
from boardfit.edge.race.turns import Course
from boardfit.edge.race.verdict import EntrantPace, Lead, sentence
from boardfit.edge.report.rows import align_columns
from boardfit.edge.units import format_bytes, format_seconds


def measure_pace(course: Course) -> EntrantPace:
    """Medians of a finished course."""
    prefill: dict[int, float] = {}
    decode: dict[int, float] = {}
    for run in course.runs:
        if run.test.kind == "prefill" and (value := median(run.metrics(), "prefill_s")):
            prefill[run.test.n_prompt] = value
        if run.test.kind == "decode" and (value := median(run.metrics(), "decode_tps")):
            decode[run.test.n_depth] = value
    return EntrantPace(course.entrant.label, prefill, decode)


def median(metrics: dict[str, dict[str, Any] | None], name: str) -> float | None:
    figure = metrics.get(name)
    return None if figure is None else float(figure["median"])


def table(courses: Sequence[Course], tests: Sequence[Test]) -> list[str]:
    """Tokens per second by test; TTFT of the shortest prompt, load, and the peak of anonymous
    memory over all tests.
    """
    shortest = next((t for t in tests if t.kind == "prefill"), None)
    heads = [
        f"pp{t.n_prompt}" if t.kind == "prefill" else f"tg@{t.n_depth}" for t in tests
    ]  # fmt: skip
    rows = [("entrant", *heads, "TTFT", "load", "anonymous", "file")]
    for course in sorted(courses, key=lambda c: measure_pace(c).seconds(128)):
        cells = []
        for test in tests:
            metrics = course.find_run(test).metrics()
            rate = median(metrics, f"{test.kind}_tps")
            cells.append("–" if rate is None else f"{rate:.1f}" if rate < 100 else f"{rate:.0f}")
        ttft = median(course.find_run(shortest).metrics(), "ttft_s") if shortest else None
        load = median(course.loads.metrics(), "load_s")
        rows.append(
            (
                course.entrant.label,
                *cells,
                format_seconds(ttft),
                format_seconds(load),
                format_bytes(peak_anonymous(course)),
                format_bytes(course.entrant.bundle.n_bytes),
            )
        )
    return align_columns(rows)


def peak_anonymous(course: Course) -> int | None:
    peaks = [
        int(figure["maximum"])
        for run in course.runs
        if (figure := run.metrics().get("peak_anon_bytes")) is not None
    ]
    return max(peaks, default=None)


def race_lines(
    courses: Sequence[Course],
    tests: Sequence[Test],
    found: Sequence[Lead],
    agreements: Sequence[EntrantAgreement],
) -> list[str]:
    """The verdict, the table, who agrees with whom, and what disturbed it."""
    lines = [sentence(found), "", *table(courses, tests)]
    lines += ["", "  pp: prefill, tg: decode, tokens/s, medians; answers of 64 tokens decide"]
    if agreements:
        first = courses[0].entrant
        shares = ", ".join(
            f"{row.entrant.engine} {row.entrant.recipe} {row.share:.1%}" for row in agreements
        )
        lines.append(f"  same greedy token as {first.engine} {first.recipe}: {shares}")
    flags = sorted({flag.split(":")[0] for c in courses for run in c.runs for flag in run.flags})
    if flags:
        lines.append(f"  disturbed: {', '.join(flags)}; repeat it on a quiet machine")
    return lines
