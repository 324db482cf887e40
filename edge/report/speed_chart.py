"""Decode speed over a run, beside temperature, clock and power."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.bench.metrics import drift, measure, sustained_ratio
from boardfit.edge.bench.trace_rows import expand_trace
from boardfit.edge.report.chart import Chart, Missing, Panel, Series, sentence, thin
from boardfit.edge.report.figures import Record, Run, name_test

NS = 1e-9


def timed_traces(run: Run) -> list[tuple[float, Record, dict[str, Any]]]:
    """(start in s, record, trace) in the order of time; those of schema 1 are laid end to end."""
    found = [(r, t) for r in run.records for t in r.get("traces", []) if "end_ns" in t]
    starts = [trace.get("start_ns") for _, trace in found]
    if None in starts:
        starts = [0, *itertools.accumulate(trace["end_ns"] for _, trace in found)]
    placed = [(start * NS, *pair) for start, pair in zip(starts, found, strict=False)]
    return sorted(placed, key=lambda item: item[0])


# Speed over time is shown in windows of at least this long.
WINDOW_S = 1.0


def speed_windows(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Test label → (middle of a window in seconds, decode tokens/s in it). A window ends with the
    first token after `WINDOW_S`; what is left of a request joins its last window.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for start_s, record, trace in timed_traces(run):
        times = trace.get("token_t_ns", [])
        if record["test"]["kind"] == "prefill" or len(times) < 3:
            continue
        edges = [0]
        for i, t in enumerate(times):
            if (t - times[edges[-1]]) * NS >= WINDOW_S:
                edges.append(i)
        edges = [*(edges[:-1] or [0]), len(times) - 1]
        for first, last in itertools.pairwise(edges):
            span = (times[last] - times[first]) * NS
            if span:
                middle = start_s + (times[first] + times[last]) / 2 * NS
                rates = found.setdefault(name_test(record), [])
                rates.append((middle, (last - first) / span))
    return found


# More windows than this are drawn as the medians of as many spells: a cloud hides the trend.
MAX_WINDOWS = 120


def medians(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(middle of a spell, median of its values) for `MAX_WINDOWS` spells of equal length."""
    first, last = points[0][0], points[-1][0]
    spells: dict[int, list[tuple[float, float]]] = {}
    for t, value in points:
        share = (t - first) / (last - first) if last > first else 0.0
        spells.setdefault(min(MAX_WINDOWS - 1, int(share * MAX_WINDOWS)), []).append((t, value))
    return [
        (statistics.fmean(t for t, _ in spell), statistics.median(value for _, value in spell))
        for _, spell in sorted(spells.items())
    ]


def sustained_share(run: Run) -> float | None:
    """What a board holds of its first burst in a sustained test, None without one."""
    found = [(s, t) for s, record, t in timed_traces(run) if record["test"]["kind"] == "sustained"]
    rates = [(start_s, measure(expand_trace(trace))["decode_tps"]) for start_s, trace in found]
    return sustained_ratio([(start_s, rate) for start_s, rate in rates if rate is not None])


def speed_over_time(run: Run) -> Chart | Missing:
    """Decode speed, and the sensor values during the run."""
    title = "Speed, temperature and clock over the run"
    windows, sensors = speed_windows(run), sensor_points(run)
    summary = speed_summary(run, windows)
    measured = [label for label, _, points in sensors if points]
    if summary is None and not measured:
        return Missing(title, "there are fewer than four spells of decoding of one kind")
    if sustained_share(run):
        windows = {label: points for label, points in windows.items() if "sustained" in label}
    note = ""
    if max(map(len, windows.values()), default=0) > MAX_WINDOWS:
        windows = {label: medians(points) for label, points in windows.items()}
        note = "Each point is the median of its spell. "
    speeds, rows, spans = list[Series](), list[tuple[str, ...]](), list[str]()
    for label, points in windows.items():
        times, rates = zip(*points, strict=True)
        speeds.append(Series(label, *thin(times, rates), "points"))
        low, high = f"{min(rates):.1f}", f"{max(rates):.1f}"
        rows.append((f"{label}, tokens/s", low, high, str(len(rates))))
    panels = [Panel("tokens/s", tuple(speeds))] if speeds else []
    for label, unit, points in sensors:
        if not points:
            continue
        times, values = zip(*points, strict=True)
        low, high = f"{min(values):.2f}", f"{max(values):.2f}"
        span = f"stayed at {low}" if low == high else f"ran from {low} to {high}"
        spans.append(f"{label} {span} {unit}")
        panels.append(Panel(unit, (Series(label, *thin(times, values)),), y_from_zero=False))
        rows.append((f"{label}, {unit}", low, high, str(len(values))))
    if len(measured) < len(sensors):
        absent = ", ".join(label for label, _, points in sensors if not points)
        note += f"Not measured here: {absent}; no sensor was readable."
    text = " ".join(part for part in (summary, sentence(spans)) if part)
    header = ("figure", "lowest", "highest", "points")
    return Chart(
        "speed-time", title, text, "seconds", tuple(panels), header, tuple(rows),
        note.strip() or None,
    )  # fmt: skip


def speed_summary(run: Run, windows: Mapping[str, Sequence[tuple[float, float]]]) -> str | None:
    """Whether the run slowed down, in one sentence; None below four spells of any test."""
    if held := sustained_share(run):
        return f"At the end of the run decode holds {held:.0%} of its first burst."
    changes = [drift([rate for _, rate in points]) for points in windows.values()]
    if not (drifts := [change for change in changes if change is not None]):
        return None
    times = [t for points in windows.values() for t, _ in points]
    return (
        f"Over {max(times) - min(times):.0f} s decode ran in the second half at "
        f"{1 + statistics.median(drifts):.2f} times its speed in the first, like compared with "
        "like."
    )


def sensor_points(run: Run) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """(what, unit, (seconds, reading) in the order of time) of temperature, clock and power."""
    rows = [
        (start_s + row[0] * NS, row)
        for start_s, _, trace in timed_traces(run)
        for row in trace.get("heat", [])
    ]

    def find(i: int, scale: float = 1.0) -> list[tuple[float, float]]:
        return [(t, row[i] * scale) for t, row in rows if i < len(row) and row[i] is not None]

    clock = ("clock", "GHz", find(2, 1e-9))
    return [("temperature", "°C", find(1)), clock, ("power", "W", find(4))]
