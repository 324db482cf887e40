"""Table rows of one run as plain text; each format escapes them in its own way."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Section(NamedTuple):
    """A table of a run below a heading, and what is to know of it."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def list_sections(run: Run) -> list[Section]:
    """What was measured of load, memory, energy and predictions; empty ones are left out."""
    loads = [
        (
            str(record["test"].get("page_cache") or "–"),
            format_seconds(median(record, "load_s")),
            format_seconds(median(record, "load_to_first_token_s")),
        )
        for record in run.tests("load")
    ]
    ratios = [
        (f"{name}, {unit}", f"{plan:,.0f}", f"{got:,.0f}", f"{got / plan:.2f}")
        for name, unit, plan, got in run.find_predictions()
    ]
    sensor = str(run.head["machine"].get("power_sensor"))
    method = f"{sensor}: {METHODS.get(sensor, 'unknown method')}; idle power is in it"
    sections = (
        Section("Load", ("page cache", "open", "open to first token"), loads),
        Section("Memory", ("kind", "peak"), memory_rows(run)),
        Section("Energy", ("test", "power", "per token"), energy_rows(run), method),
        Section("Predicted and measured", ("figure", "plan", "measured", "ratio"), ratios),
    )
    return [section for section in sections if section.rows]


def memory_rows(run: Run) -> list[tuple[str, str]]:
    peaks = {
        "anonymous (what a board dies of)": "peak_anon_bytes",
        "file pages (mapped weights, can be dropped)": "peak_file_bytes",
        "PSS": "peak_pss_bytes",
        "RSS": "peak_rss_bytes",
        "swap grown by": "swap_grown_bytes",
    }
    baseline = (run.head.get("baseline") or {}).get("rss_bytes")
    rows = [(kind, format_bytes(run.peak(name))) for kind, name in peaks.items()]
    return [*rows, ("RSS before the engine was opened", format_bytes(baseline))]


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


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell, two spaces apart."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def provenance(run: Run) -> list[tuple[str, str]]:
    """What a reader needs to repeat or to doubt the run."""
    head = run.head
    artifact, engine, machine, kit = (head[k] for k in ("artifact", "engine", "machine", "kit"))
    cores = machine.get("n_cores")
    commit = str(kit.get("commit") or "")[:12]
    changed = "changed since the commit" if kit.get("changed") else ""
    facts = [
        ("artifact", f"{artifact['name']}, {format_bytes(artifact.get('n_bytes'))}"),
        ("artifact SHA-256", artifact.get("sha256")),
        ("bundle", artifact.get("bundle_id")),
        ("quantization", engine.get("quant")),
        ("engine", _join_known(engine.get("name"), engine.get("version"), engine.get("build"))),
        ("settings", run.settings_text),
        ("machine", _join_known(run.machine_name, machine.get("cpu"), machine.get("arch"))),
        ("cores, memory", f"{cores or '–'}, {format_bytes(machine.get('ram_bytes'))}"),
        ("system", _join_known(machine.get("os"), machine.get("kernel"))),
        ("governor", machine.get("governor")),
        *((f"state {when}", state_text(head, when)) for when in ("before", "after")),
        ("planned for", head.get("board")),
        ("boardfit", _join_known(kit.get("version"), commit, changed)),
        ("measured", head["time"]),
        ("run", run.run_id),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def state_text(head: Record, when: str) -> str:
    """Temperature, clock, throttle bits and load before or after, as far as they were readable."""
    state = (head.get("states") or {}).get(when) or {}
    forms = (
        ("temp_c", "{:.0f} °C"),
        ("clock_hz", "{:.3g} Hz"),
        ("throttled", "throttle bits {:#x}"),
        ("load_1min", "load {:.2f}"),
    )
    known = [(form, state.get(key)) for key, form in forms]
    return ", ".join(
        form.format(int(value) if "#x" in form else value)
        for form, value in known
        if value is not None
    )


def _join_known(*parts: Any) -> str:
    return ", ".join(str(part) for part in dict.fromkeys(parts) if part)
