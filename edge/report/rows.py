"""Table rows of one run as plain text; each format escapes them in its own way."""

import re
from collections.abc import Sequence

from boardfit.edge.bench.heat import METHODS
from boardfit.edge.report.figures import Record, Run, median, name_test, spread_text
from boardfit.edge.units import format_bytes, format_seconds

_PERCENT = re.compile(r"[+-]\d{1,9}%")


def flag_lines(run: Run) -> list[str]:
    """Format every flag once, with its tests. Flags that differ only in a percentage share a line:
    `drift: the second half ran -9% (prefill 128), +7% (prefill 512)`.
    """
    stems: dict[str, dict[str, list[str]]] = {}
    for record in run.records:
        for flag in map(str, record.get("flags") or []):
            head, _, last = flag.rpartition(" ")
            stem, end = (head, last) if _PERCENT.fullmatch(last) else (flag, "")
            labels = stems.setdefault(stem, {}).setdefault(end, [])
            labels.append(name_test(record))

    def add_tests(end: str, labels: Sequence[str]) -> str:
        return end if len(labels) == len(run.records) else f"{end} ({', '.join(labels)})".strip()

    return [
        f"{stem} {', '.join(add_tests(*part) for part in ends.items())}".strip()
        for stem, ends in stems.items()
    ]


def memory_rows(run: Run) -> list[tuple[str, str]]:
    baseline = run.head.get("baseline") or {}
    return [
        ("anonymous (what a board dies of)", format_bytes(run.peak("peak_anon_bytes"))),
        ("file pages (mapped weights, can be dropped)", format_bytes(run.peak("peak_file_bytes"))),
        ("PSS", format_bytes(run.peak("peak_pss_bytes"))),
        ("RSS", format_bytes(run.peak("peak_rss_bytes"))),
        ("swap grown by", format_bytes(run.peak("swap_grown_bytes"))),
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


def energy_rows(run: Run) -> list[tuple[str, str, str]]:
    """(test, power, energy per token) where a sensor saw it; nothing otherwise."""
    return [
        (
            name_test(record),
            f"{spread_text(record, 'power_w', 2)} W",
            f"{spread_text(record, 'j_per_token', 3)} J",
        )
        for record in run.records
        if median(record, "j_per_token") is not None
    ]


def energy_method(run: Run) -> str:
    """How power was read and what that does not see."""
    kind = str(run.head["machine"].get("power_sensor"))
    return f"{kind}: {METHODS.get(kind, 'unknown method')}; idle power is in it"


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell, two spaces apart."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
