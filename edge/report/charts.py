"""The charts of one run, each from its stored records; what was not measured is a `Missing`."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.bench.metrics import drift, measure, quantile, sustained_ratio
from boardfit.edge.bench.trace_rows import expand_trace, memory_rows
from boardfit.edge.report.deadline_rows import find_section
from boardfit.edge.report.draw import (
    FIRST_IN,
    NEXT_IN,
    Chart,
    Draw,
    Missing,
    draw_limit,
    make_bars,
    shorten_label,
)
from boardfit.edge.report.figures import Record, Run, find_spread, median, name_test, spread_text
from boardfit.edge.units import MIB, format_bytes, format_seconds

NS = 1e-9
NAN = float("nan")
# More points with whiskers than this hide one another; the table has them all.
MAX_DRAWN = 60
# Fewer points than this are each marked.
FEW = 30
Points = list[tuple[float, float]]
# Seconds of a request, and its budget.
Times = Sequence[tuple[float, float | None]]


def language_charts(run: Run, within_s: float | None = None) -> list[Chart | Missing]:
    """All charts of a language model's run, in order. Raises InputError on a broken trace."""
    return [
        rate_chart(run, "decode"),
        rate_chart(run, "prefill"),
        memory_over_time(run),
        speed_over_time(run),
        chart_predictions(run),
        answer_times(run, within_s),
        token_gaps(run),
    ]


def network_charts(run: Run, within_s: float | None = None) -> list[Chart | Missing]:
    """All charts of the run of a network that is no language model."""
    repeats = [figures for record in run.records for figures in record.get("figures") or []]
    times = [(float(v), within_s) for f in repeats if (v := f.get("latency_s")) is not None]
    latencies = {"inferences": times}
    return [
        distribution("latencies", "Latency against the budget", "inferences", latencies),
        memory_over_time(run),
    ]


def deadline_charts(run: Run, within_s: float | None = None) -> list[Chart | Missing]:
    """All charts of a workload's run in the order of the page."""

    def draw(key: str, title: str, name: str, limit: str, given: float | None) -> Chart | Missing:
        groups = {name_test(r): list_times(r, name, limit, given) for r in run.records}
        return distribution(key, title, "answered requests", groups, count_unanswered(run))

    whole, first = ("total_s", "within_s", within_s), ("first_s", "first_within_s", None)
    return [
        draw("deadline-answers", "Whole answers against the budget", *whole),
        draw("deadline-first", "First tokens against the budget", *first),
        memory_over_time(run),
    ]


def sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


# ---- rates and predictions -----------------------------------------------------------------------

#: The position of a test, the title, the axis, the heading in the table.
RATES = {
    "decode": ("n_depth", "Decode speed against depth", "tokens already in the context", "depth"),
    "prefill": ("n_prompt", "Prefill speed against prompt length", "prompt tokens", "prompt"),
}


def rate_chart(run: Run, kind: str) -> Chart | Missing:
    """Medians of a rate, with intervals, over a count of tokens."""
    (position, title, x_label, heading), rate = RATES[kind], f"{kind}_tps"
    known = [record for record in run.tests(kind) if median(record, rate) is not None]
    if not known:
        return Missing(title, f"no {kind} test is among the results")
    found = sorted(known, key=lambda record: record["test"][position])
    rows = [
        (f"{r['test'][position]:,}", spread_text(r, rate), str(find_spread(r, rate).get("n")))
        for r in found
    ]
    drawn = found[:: -(-len(found) // MAX_DRAWN)]
    x = [float(record["test"][position]) for record in drawn]
    spreads = [find_spread(record, rate) for record in drawn]
    y = [float(spread["median"]) for spread in spreads]
    bounds = [
        (max(0.0, s["median"] - s["p10"]), max(0.0, s["p90"] - s["median"]))
        if (s.get("n") or 0) >= 2
        else (NAN, NAN)
        for s in spreads
    ]
    summary = f"{kind.capitalize()} runs at {y[0]:,.1f} tokens per second at {x[0]:,.0f} tokens"
    if len(y) > 1:
        change = f" ({y[-1] / y[0] - 1:+.0%})" if y[0] else ""
        summary += f" and at {y[-1]:,.1f} at {x[-1]:,.0f}{change}"

    def draw(axes: Any) -> None:
        axes.errorbar(x, y, list(zip(*bounds, strict=True)), fmt="-o")
        axes.set(ylabel="tokens/s", ylim=(0, max(1e-9, 1.05 * max(y))))

    is_single = all(int(record["test"].get("n_repeats") or 0) < 2 for record in found)
    return Chart(
        f"{kind}-speed", title, f"{summary}.", x_label, [(FIRST_IN, draw)],
        (f"{heading}, tokens", "tokens/s, median (p10–p90)", "repetitions"), rows,
        "One repetition: there is no interval to show." if is_single
        else "Points are medians, whiskers the middle 80% of the repetitions.",
    )  # fmt: skip


def chart_predictions(run: Run) -> Chart | Missing:
    title, promised = "Predicted and measured", run.head.get("predicted")
    if not promised:
        return Missing(title, "the results carry no plan: measure a bundle, not a bare model file")
    if not run.is_planned_machine:
        return Missing(title, f"the plan was made for {promised.get('device')}, not this machine")
    known = run.find_predictions()
    if not known:
        return Missing(title, "the plan made no prediction that was measured")
    bound = promised.get("error_bound")
    band = None if bound is None else (max(0.0, 1 - bound), 1 + bound)
    bars = [(name, got / plan, f"{got / plan:.2f}×") for name, _, plan, got in known]
    text = {"tokens/s": lambda v: f"{v:,.1f} tokens/s", "bytes": lambda v: format_bytes(int(v))}
    return Chart(
        "predicted", title,
        sentence([f"{name} came out at {share:.2f} times the plan" for name, share, _ in bars]),
        "", [make_bars("measured ÷ predicted", bars, band, 1.0)],
        ("figure", "predicted", "measured", "ratio"),
        [(n, text[u](plan), text[u](got), f"{got / plan:.2f}") for n, u, plan, got in known],
        f"The band is the plan's own error bound, ±{bound:.0%} on speed." if band else None,
    )  # fmt: skip


# ---- over time -----------------------------------------------------------------------------------


def timed_traces(run: Run) -> list[tuple[float, Record, dict[str, Any]]]:
    """(start in s, record, trace) in the order of time; those of schema 1 are laid end to end."""
    found = [(r, t) for r in run.records for t in r.get("traces", []) if "end_ns" in t]
    starts = [trace.get("start_ns") for _, trace in found]
    if None in starts:
        starts = [0, *itertools.accumulate(trace["end_ns"] for _, trace in found)]
    placed = [(start * NS, *pair) for start, pair in zip(starts, found, strict=False)]
    return sorted(placed, key=lambda item: item[0])


def draw_lines(y_label: str, lines: Mapping[str, Points], *, from_zero: bool = True) -> Draw:
    def draw(axes: Any) -> None:
        for label, points in lines.items():
            marker = "o" if len(points) <= FEW else None
            axes.plot(*zip(*points, strict=True), label=shorten_label(label), marker=marker)
        axes.set_ylabel(y_label)
        if from_zero:
            axes.set_ylim(0, max(1e-9, 1.05 * axes.get_ylim()[1]))

    return draw


def find_range(points: Points, decimals: int) -> tuple[str, str, str]:
    """The lowest and the highest value, and how many there are."""
    values = [value for _, value in points]
    low, high = (f"{value:,.{decimals}f}" for value in (min(values), max(values)))
    return low, high, str(len(values))


def memory_over_time(run: Run) -> Chart | Missing:
    title = "Memory by kind over time"
    names = ("RSS", "anonymous", "file pages", "PSS", "swap")  # in the order of MEMORY_FIELDS
    points: dict[str, Points] = {name: [] for name in (*names[1:4], names[0], names[4])}
    for start_s, _, trace in timed_traces(run):
        for t_ns, *values in memory_rows(trace.get("memory", [])):
            for name, value in zip(names, values, strict=True):
                if value is not None:
                    points[name].append((start_s + t_ns * NS, value / MIB))
    known = {name: sorted(found) for name, found in points.items() if found}
    drawn = {n: found for n, found in known.items() if n != "swap" or any(v for _, v in found)}
    if not drawn:
        return Missing(title, "the results hold no memory samples")
    rows = [(name, *find_range(found, 1)) for name, found in known.items()]
    summary = sentence(
        [f"{name} peaks at {high} MiB" for name, _, high, _ in rows if name in drawn]
    )
    limit, used = run.memory_limit, run.peak("peak_anon_bytes")
    largest = max(value for found in drawn.values() for _, value in found)
    if limit is not None and used is not None:
        summary += f" The board has {format_bytes(limit)}: anonymous memory took "
        summary += f"{used / limit:.1%} of it."
    lines = draw_lines("MiB", drawn)

    def draw(axes: Any) -> None:
        lines(axes)
        if limit is not None:
            draw_limit(axes, "y", limit / MIB, f"limit {format_bytes(limit)}", largest)

    return Chart(
        "memory-time", title, summary, "seconds", [(FIRST_IN, draw)],
        ("kind", "lowest, MiB", "highest, MiB", "samples"), rows,
        "Anonymous memory is what a board dies of; file pages can be dropped and read again.",
    )  # fmt: skip


def speed_over_time(run: Run) -> Chart | Missing:
    """Decode speed of each repetition, and the sensor values during the run."""
    title = "Speed, temperature and clock over the run"
    speeds, sensors = decode_speeds(run), sensor_points(run)
    held = sustained_share(run)
    summary = speed_summary(held, speeds)
    measured = {label: points for label, points in sensors.items() if points}
    if not summary and not measured:
        return Missing(title, "there are fewer than four repetitions of decoding of one kind")
    if held:
        speeds = {label: points for label, points in speeds.items() if "sustained" in label}
    panels = [(FIRST_IN, draw_lines("tokens/s", speeds))] if speeds else []
    rows = [(f"{label}, tokens/s", *find_range(points, 1)) for label, points in speeds.items()]
    spans = []
    for label, points in measured.items():
        name, unit = label.split(", ")
        draw = draw_lines(unit, {name: points}, from_zero=False)
        panels.append((NEXT_IN if panels else FIRST_IN, draw))
        low, high, n = find_range(points, 2)
        rows.append((label, low, high, n))
        spans.append(f"{name} ran from {low} to {high} {unit}")
    absent = ", ".join(label.split(", ")[0] for label, points in sensors.items() if not points)
    return Chart(
        "speed-time", title, f"{summary} {sentence(spans)}".strip(), "seconds", panels,
        ("figure", "lowest", "highest", "points"), rows,
        f"Not measured here: {absent}; no sensor was readable." if absent else None,
    )  # fmt: skip


def decode_speeds(run: Run) -> dict[str, Points]:
    """Test → (middle of a repetition in seconds, decode tokens/s in it)."""
    found: dict[str, Points] = {}
    for start_s, record, trace in timed_traces(run):
        rate = measure(expand_trace(trace))["decode_tps"]
        if rate is not None and record["test"]["kind"] != "prefill":
            middle_s = start_s + trace["end_ns"] / 2 * NS
            found.setdefault(name_test(record), []).append((middle_s, rate))
    return found


def sustained_share(run: Run) -> float | None:
    """What a board holds of its first burst in a sustained test, None without one."""
    found = [(s, t) for s, record, t in timed_traces(run) if record["test"]["kind"] == "sustained"]
    rates = [(start_s, measure(expand_trace(trace))["decode_tps"]) for start_s, trace in found]
    return sustained_ratio([(start_s, rate) for start_s, rate in rates if rate is not None])


def speed_summary(held: float | None, speeds: Mapping[str, Points]) -> str:
    """Whether the run slowed down; empty below four repetitions of any test."""
    if held:
        return f"At the end of the run decode holds {held:.0%} of its first burst."
    changes = [drift([rate for _, rate in points]) for points in speeds.values()]
    known = [change for change in changes if change is not None]
    if not known:
        return ""
    times = [t for points in speeds.values() for t, _ in points]
    return (
        f"Over {max(times) - min(times):.0f} s decode ran in the second half at "
        f"{1 + statistics.median(known):.2f} times its speed in the first."
    )


def sensor_points(run: Run) -> dict[str, Points]:
    """Temperature, clock and power → (seconds, reading) in the order of time."""
    columns = {"temperature, °C": (1, 1.0), "clock, GHz": (2, 1e-9), "power, W": (4, 1.0)}
    rows = [
        (start_s + row[0] * NS, row)
        for start_s, _, trace in timed_traces(run)
        for row in trace.get("heat", [])
    ]
    return {
        label: [(t, row[i] * unit) for t, row in rows if i < len(row) and row[i] is not None]
        for label, (i, unit) in columns.items()
    }


# ---- distributions -------------------------------------------------------------------------------

_POINTS = {"fastest": 0.0, "p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "slowest": 1.0}


def answer_times(run: Run, within_s: float | None = None) -> Chart | Missing:
    """End-to-end seconds against the budget given, or the deadline stored in the traces."""
    traces = [t for r in run.tests("end-to-end") for t in r.get("traces", [])]
    times = [
        (measure(expand_trace(t))["end_to_end_s"], within_s or t.get("deadline_s")) for t in traces
    ]
    title = "Answer time against the budget"
    return distribution("answer-times", title, "end-to-end answers", {"answers": times})


def token_gaps(run: Run) -> Chart | Missing:
    gaps = [
        ((after - before) * NS, None)
        for record in run.records
        if record["test"]["kind"] in ("decode", "end-to-end")
        for trace in record.get("traces", [])
        for before, after in itertools.pairwise(trace.get("token_t_ns", []))
    ]
    note = "A reader notices the longest gaps, not the mean."
    what = "gaps between tokens"
    return distribution("token-gaps", "Time between tokens", what, {"gaps": gaps}, note)


def distribution(
    key: str, title: str, what: str, groups: Mapping[str, Times], note: str = ""
) -> Chart | Missing:
    """How many percent of times are not larger than each. Where budgets differ, times are drawn as
    a share of their own.
    """
    known = {label: times for label, times in groups.items() if len(times) >= 2}
    if not known:
        return Missing(title, f"fewer than two {what} are among the results")
    budgets = {budget for times in known.values() for _, budget in times}
    if len(budgets) > 1 and None in budgets:
        return Missing(title, "some requests have a budget for this, and others have none")
    is_share = len(budgets) > 1
    end = 100.0 if is_share else budgets.pop()
    drawn = {
        label: [100 * t / budget if is_share and budget else t for t, budget in times]
        for label, times in known.items()
    }

    def show(value: float) -> str:
        return f"{value:.0f} %" if is_share else format_seconds(value)

    limit = "own budget" if is_share else f"budget of {format_seconds(end)}"

    def summarize(label: str, values: Sequence[float]) -> str:
        text = f"{label}: half of {len(values):,} took at most {show(quantile(values, 0.5))}, "
        text += f"the slowest {show(max(values))}"
        n_met = sum(value <= end for value in values) if end else 0
        return f"{text}; {n_met} of {len(values)} met the {limit}" if end else text

    def draw(axes: Any) -> None:
        for label, values in drawn.items():
            axes.ecdf(values, label=shorten_label(label))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], [0, 25, 50, 75, 100])
        axes.set(ylabel="%", xlim=(min(0.0, axes.get_xlim()[0]), None))
        if end:
            draw_limit(axes, "x", end, limit, max(max(values) for values in drawn.values()))

    return Chart(
        key, title, " ".join(sentence([summarize(*item)]) for item in drawn.items()),
        "% of each request's own budget" if is_share else "seconds", [(FIRST_IN, draw)],
        ("point", *drawn),
        [(name, *(show(quantile(v, q)) for v in drawn.values())) for name, q in _POINTS.items()],
        note or (None if end else "No budget was given: edge report --within 5s draws one."),
    )  # fmt: skip


def list_requests(record: Record) -> list[Mapping[str, Any]]:
    """The stored requests of a workload. A result is untrusted: odd rows are left out."""
    rows = find_section(record).get("requests")
    return [row for row in (rows if isinstance(rows, list) else []) if isinstance(row, Mapping)]


def list_times(record: Record, name: str, limit: str, given: float | None) -> Times:
    """(seconds, budget) of each answered request, which is one that gave a token in its time."""
    return [
        (seconds, given or _positive(row, limit))
        for row in list_requests(record)
        if (seconds := _positive(row, name)) is not None and _positive(row, "first_s") is not None
    ]


def _positive(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if 0 < value < float("inf") else None


def count_unanswered(run: Run) -> str:
    """State how many accepted requests gave no token in their time; empty where all did."""
    texts = []
    for record in run.records:
        accepted = [row for row in list_requests(record) if row.get("accepted")]
        if n_silent := sum(_positive(row, "first_s") is None for row in accepted):
            what = f"{n_silent} of {len(accepted)} gave no answer at all."
            texts.append(f"{name_test(record)}: {what}")
    return " ".join(texts)
