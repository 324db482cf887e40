"""The charts of one run, each from its stored records; what was not measured is a `Missing`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from boardfit.edge.bench.metrics import measure, quantile
from boardfit.edge.bench.trace_rows import MEMORY_FIELDS, expand_trace, memory_rows
from boardfit.edge.report.chart import (
    Bars,
    Chart,
    LimitLine,
    Missing,
    Panel,
    Rows,
    Series,
    sentence,
    thin,
)
from boardfit.edge.report.deadline_rows import find_section
from boardfit.edge.report.figures import Record, Run, find_spread, median, name_test, spread_text
from boardfit.edge.report.speed_chart import speed_over_time, timed_traces
from boardfit.edge.units import MIB, format_bytes, format_seconds

NS = 1e-9
# More points with whiskers than this hide one another; the table has them all.
MAX_DRAWN = 60
_POINTS = (("fastest", 0.0), ("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("slowest", 1.0))
_DEADLINE_POINTS = (*_POINTS[:3], ("p99", 0.99), _POINTS[-1])


def language_charts(run: Run, within_s: float | None = None) -> list[Chart | Missing]:
    """All charts of a language model's run, in order. Raises InputError on a broken trace."""
    return [
        decode_against_depth(run),
        prefill_against_length(run),
        memory_over_time(run),
        speed_over_time(run),
        chart_predictions(run),
        answer_times(run, within_s),
        token_gaps(run),
    ]


def deadline_charts(run: Run, within_s: float | None = None) -> list[Chart | Missing]:
    """All charts of a workload's run in the order of the page."""
    whole = ("total_s", "within_s", "deadline-answers", "Whole answers against the budget")
    first = ("first_s", "first_within_s", "deadline-first", "First tokens against the budget")
    return [
        against_budget(run, *whole, within_s),
        against_budget(run, *first, None),
        memory_over_time(run),
    ]


# ---- rates ---------------------------------------------------------------------------------------


def _draw_against(records: Sequence[Record], position: str, rate: str) -> tuple[Series, Rows]:
    """Medians with intervals over a count of tokens, and the same as table rows."""
    records = [record for record in records if median(record, rate) is not None]
    found = sorted(records, key=lambda r: r["test"][position])
    drawn = found[:: max(1, -(-len(found) // MAX_DRAWN))]
    spreads = [find_spread(record, rate) for record in drawn]
    has_interval = [(figure.get("n") or 0) >= 2 for figure in spreads]
    pairs = list(zip(spreads, has_interval, strict=True))
    series = Series(
        rate.removesuffix("_tps"),
        tuple(float(record["test"][position]) for record in drawn),
        tuple(float(figure["median"]) for figure in spreads),
        low=tuple(figure.get("p10") if known else None for figure, known in pairs),
        high=tuple(figure.get("p90") if known else None for figure, known in pairs),
    )
    rows = [
        (f"{r['test'][position]:,}", spread_text(r, rate), str(find_spread(r, rate).get("n")))
        for r in found
    ]
    return series, tuple(rows)


def _repeats_note(records: Sequence[Record]) -> str:
    if all(int(record["test"].get("n_repeats") or 0) < 2 for record in records):
        return "One repetition: there is no interval to show."
    return "Points are medians, whiskers the middle 80% of the repetitions."


def decode_against_depth(run: Run) -> Chart | Missing:
    title, tests = "Decode speed against depth", run.tests("decode")
    series, rows = _draw_against(tests, "n_depth", "decode_tps")
    if not rows:
        return Missing(title, "no decode test is among the results")
    summary = f"Decode runs at {series.y[0]:.1f} tokens per second after {series.x[0]:,.0f} tokens"
    if len(series.y) > 1:
        change = series.y[-1] / series.y[0] - 1 if series.y[0] else 0.0
        summary += f" and at {series.y[-1]:.1f} after {series.x[-1]:,.0f} ({change:+.0%})"
    return Chart(
        "decode-depth", title, f"{summary}.", "tokens already in the context",
        (Panel("tokens/s", (series,)),),
        ("depth, tokens", "tokens/s, median (p10–p90)", "repetitions"), rows, _repeats_note(tests),
    )  # fmt: skip


def prefill_against_length(run: Run) -> Chart | Missing:
    title, tests = "Prefill speed against prompt length", run.tests("prefill")
    series, rows = _draw_against(tests, "n_prompt", "prefill_tps")
    if not rows:
        return Missing(title, "no prefill test is among the results")
    rate, length = max(zip(series.y, series.x, strict=True), key=lambda point: point[0])
    summary = f"Prefill is fastest at {length:,.0f} prompt tokens: {rate:,.0f} tokens per second."
    return Chart(
        "prefill-length", title, summary, "prompt tokens", (Panel("tokens/s", (series,)),),
        ("prompt, tokens", "tokens/s, median (p10–p90)", "repetitions"), rows, _repeats_note(tests),
    )  # fmt: skip


def chart_predictions(run: Run) -> Chart | Missing:
    title = "Predicted and measured"
    promised = run.head.get("predicted")
    if not promised:
        return Missing(title, "the results carry no plan: measure a bundle, not a bare model file")
    if not run.is_planned_machine:
        return Missing(title, f"the plan was made for {promised.get('device')}, not this machine")
    known = run.find_predictions()
    if not known:
        return Missing(title, "the plan made no prediction that was measured")
    bound = promised.get("error_bound")
    band = None if bound is None else (max(0.0, 1 - bound), 1 + bound)
    bars = tuple((name, got / plan, f"{got / plan:.2f}×") for name, _, plan, got in known)
    text = {"tokens/s": lambda v: f"{v:,.1f} tokens/s", "bytes": lambda v: format_bytes(int(v))}
    axis = "measured ÷ predicted"
    return Chart(
        "predicted",
        title,
        sentence(f"{name} came out at {share:.2f} times the plan" for name, share, _ in bars),
        axis,
        (Bars(axis, bars, band, 1.0),),
        ("figure", "predicted", "measured", "ratio"),
        tuple((n, text[u](plan), text[u](got), f"{got / plan:.2f}") for n, u, plan, got in known),
        f"The band is the plan's own error bound, ±{bound:.0%} on speed." if band else None,
    )


# ---- memory --------------------------------------------------------------------------------------


def memory_over_time(run: Run) -> Chart | Missing:
    title = "Memory by kind over time"
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in MEMORY_FIELDS}
    for start_s, _, trace in timed_traces(run):
        for t_ns, *values in memory_rows(trace.get("memory", [])):
            for name, value in zip(MEMORY_FIELDS, values, strict=True):
                if value is not None:
                    points[name].append((start_s + t_ns * NS, value / MIB))
    labels = {"anon_bytes": "anonymous", "file_bytes": "file pages", "pss_bytes": "PSS",
              "rss_bytes": "RSS", "swap_bytes": "swap"}  # fmt: skip
    known = {label: points[name] for name, label in labels.items() if points[name]}
    series, rows = [], []
    for label, found in known.items():
        values = [value for _, value in found]
        low, high = f"{min(values):,.1f}", f"{max(values):,.1f}"
        rows.append((label, low, high, str(len(values))))
        if label != "swap" or max(values) > 0:
            found.sort(key=lambda point: point[0])
            series.append(Series(label, *thin([t for t, _ in found], [v for _, v in found])))
    if not series:
        return Missing(title, "the results hold no memory samples")
    limit_bytes, used = run.memory_limit, run.peak("peak_anon_bytes")
    summary = sentence(f"{s.name} peaks at {max(s.y):,.1f} MiB" for s in series)
    limit = None
    if limit_bytes is not None:
        limit = LimitLine(limit_bytes / MIB, f"limit {format_bytes(limit_bytes)}")
        if used is not None:
            summary += (
                f" The board has {format_bytes(limit_bytes)}: anonymous memory took "
                f"{used / limit_bytes:.1%} of it."
            )
    return Chart(
        "memory-time", title, summary, "seconds", (Panel("MiB", tuple(series), limit),),
        ("kind", "lowest, MiB", "highest, MiB", "samples"), tuple(rows),
        "Anonymous memory is what a board dies of; file pages can be dropped and read again.",
    )  # fmt: skip


# ---- distributions -------------------------------------------------------------------------------


def find_ecdf(values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Find the sorted values, and the percent of all that are not larger than each."""
    ordered = sorted(values)
    shares = [100 * (i + 1) / len(ordered) for i in range(len(ordered))]
    return thin([ordered[0], *ordered], [0.0, *shares])


def _distribution_rows(values: Sequence[float]) -> Rows:
    return tuple((name, format_seconds(quantile(values, q))) for name, q in _POINTS)


def answer_times(run: Run, within_s: float | None = None) -> Chart | Missing:
    """End-to-end seconds against the budget given, or the deadline stored in the traces."""
    title = "Answer time against the budget"
    traces = [t for r in run.tests("end-to-end") for t in r.get("traces", [])]
    times = [measure(expand_trace(t))["end_to_end_s"] for t in traces]
    if len(times) < 2:
        return Missing(title, "fewer than two end-to-end answers are among the results")
    deadlines = {t.get("deadline_s") for t in traces} - {None}
    budget = within_s or (deadlines.pop() if len(deadlines) == 1 else None)
    return _distribution("answer-times", title, "answers", times, budget)


def latencies(run: Run, within_s: float | None = None) -> Chart | Missing:
    """Seconds per inference of a network that is no language model, against the budget given."""
    title = "Latency against the budget"
    repeats = [figures for record in run.records for figures in record.get("figures") or []]
    times = [float(v) for figures in repeats if (v := figures.get("latency_s")) is not None]
    if len(times) < 2:
        return Missing(title, "fewer than two inferences are among the results")
    return _distribution("latencies", title, "inferences", times, within_s)


def _distribution(
    key: str, title: str, what: str, times: Sequence[float], budget_s: float | None
) -> Chart:
    summary = (
        f"Of {len(times)} {what} half took at most {format_seconds(quantile(times, 0.5))}, "
        f"the slowest {format_seconds(max(times))}"
    )
    if budget_s is not None:
        met = sum(t <= budget_s for t in times)
        summary += f"; {met} of {len(times)} met the budget of {format_seconds(budget_s)}"
    limit = LimitLine(budget_s, f"budget {format_seconds(budget_s)}", "x") if budget_s else None
    panel = Panel(f"% of {what}", (Series(what, *find_ecdf(times), "steps"),), limit)
    note = None if budget_s else "No budget was given: edge report --within 5s draws one."
    header, rows = ("point", "time"), _distribution_rows(times)
    return Chart(key, title, f"{summary}.", "seconds", (panel,), header, rows, note)


def token_gaps(run: Run) -> Chart | Missing:
    title = "Time between tokens"
    gaps = [
        (after - before) * 1e-6
        for record in run.records
        if record["test"]["kind"] in ("decode", "end-to-end")
        for trace in record.get("traces", [])
        for before, after in pairwise(trace.get("token_t_ns", []))
    ]
    if len(gaps) < 2:
        return Missing(title, "the results hold no token times")
    seconds = [gap * 1e-3 for gap in gaps]
    half, most = (format_seconds(quantile(seconds, q)) for q in (0.5, 0.95))
    return Chart(
        "token-gaps",
        title,
        f"Of {len(gaps):,} gaps half are below {half}, 95 % below {most}; the longest is "
        f"{format_seconds(max(seconds))}.",
        "milliseconds",
        (Panel("% of gaps", (Series("gaps", *find_ecdf(gaps), "steps"),)),),
        ("point", "gap"),
        _distribution_rows(seconds),
        "A reader notices the longest gaps, not the mean.",
    )


# ---- workloads -----------------------------------------------------------------------------------


def against_budget(
    run: Run, name: str, limit: str, key: str, title: str, within_s: float | None
) -> Chart | Missing:
    """Draw one phase of each test; with different budgets each time as a share of its own."""
    asked = [(name_test(record), list_times(record, name, limit)) for record in run.records]
    rows = [(label, times) for label, times in asked if len(times) >= 2]
    if not rows:
        return Missing(title, "fewer than two requests were answered")
    budgets = {budget for _, times in rows for _, budget in times}
    if within_s is not None:
        budgets = {within_s}
    if len(budgets) > 1 and None in budgets:
        return Missing(title, "some requests have a budget for this, and others have none")
    is_share = len(budgets) > 1
    end = 100.0 if is_share else budgets.pop()
    shown = "own budget" if is_share else f"budget {format_seconds(end)}"
    drawn = {
        label: [100 * t / b if is_share and b else t for t, b in times] for label, times in rows
    }
    series = tuple(Series(label, *find_ecdf(values), "steps") for label, values in drawn.items())

    def show(value: float) -> str:
        return f"{value:.0f} %" if is_share else format_seconds(value)

    def summarize(label: str, values: Sequence[float]) -> str:
        text = (
            f"{label}: half of {len(values)} answered requests took at most "
            f"{show(quantile(values, 0.5))}, the slowest {show(max(values))}"
        )
        return text + (f"; {sum(v <= end for v in values)} kept the budget." if end else ".")

    table = [
        (point, *(show(quantile(values, q)) for values in drawn.values()))
        for point, q in _DEADLINE_POINTS
    ]
    notes = [count_unanswered(run), "" if end else "No budget was set for this."]
    return Chart(
        key,
        title,
        " ".join(summarize(label, values) for label, values in drawn.items()),
        "% of each request's own budget" if is_share else "seconds",
        (Panel("% of requests", series, LimitLine(end, shown, "x") if end else None),),
        ("point", *drawn),
        tuple(table),
        " ".join(filter(None, notes)) or None,
    )


def list_requests(record: Record) -> list[Mapping[str, Any]]:
    """The stored requests of a workload. A result is untrusted: odd rows are left out."""
    rows = find_section(record).get("requests")
    return [row for row in (rows if isinstance(rows, list) else []) if isinstance(row, Mapping)]


def list_times(record: Record, name: str, limit: str) -> list[tuple[float, float | None]]:
    """(seconds, budget) of each answered request, which is one that gave a token in its time."""
    return [
        (seconds, _positive(row, limit))
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
            label = name_test(record)
            texts.append(f"{label}: {n_silent} of {len(accepted)} gave no answer at all.")
    return " ".join(texts)
