"""The charts of one run, each from its stored records; what was not measured is a `Missing`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from boardfit.edge.bench.metrics import measure, quantile
from boardfit.edge.bench.trace_rows import MEMORY_FIELDS, expand_trace, memory_rows
from boardfit.edge.report.chart import Bars, Chart, LimitLine, Missing, Panel, Series, thin
from boardfit.edge.report.figures import (
    Record,
    Run,
    best_decode,
    is_planned_machine,
    longest_prefill,
    median,
    memory_limit,
    peak,
    spread_text,
)
from boardfit.edge.report.speed_chart import speed_over_time, timed_traces
from boardfit.edge.units import MIB, format_bytes, format_seconds

NS = 1e-9
# More points with whiskers than this hide one another; the table has them all.
MAX_DRAWN = 60


def language_charts(run: Run, within_s: float | None = None) -> list[Chart | Missing]:
    """All charts of a language model's run in the order of the page.

    Raises InputError on a broken trace.
    """
    return [
        decode_against_depth(run),
        prefill_against_length(run),
        memory_over_time(run),
        speed_over_time(run),
        chart_predictions(run),
        answer_times(run, within_s),
        token_gaps(run),
    ]


def _interval(figure: dict[str, Any]) -> tuple[float | None, float | None]:
    """10–90 % of the repetitions; nothing below two of them."""
    if (figure.get("n") or 0) < 2:
        return None, None
    return figure.get("p10"), figure.get("p90")


def _draw_against(
    records: Sequence[Record], position: str, rate: str, name: str
) -> tuple[Series, tuple[tuple[str, ...], ...]] | None:
    """Medians with intervals over a count of tokens, and the same as table rows."""
    found = sorted(
        (r for r in records if median(r, rate) is not None), key=lambda r: r["test"][position]
    )
    if not found:
        return None
    drawn = found[:: -(-len(found) // MAX_DRAWN)]
    bounds = [_interval(r["metrics"][rate]) for r in drawn]
    series = Series(
        name,
        tuple(float(r["test"][position]) for r in drawn),
        tuple(median(r, rate) or 0.0 for r in drawn),
        low=tuple(low for low, _ in bounds),
        high=tuple(high for _, high in bounds),
    )
    rows = tuple(
        (f"{r['test'][position]:,}", spread_text(r, rate), str(r["metrics"][rate].get("n")))
        for r in found
    )
    return series, rows


def _repeats_note(records: Sequence[Record]) -> str:
    few = all(int(r["test"].get("n_repeats") or 0) < 2 for r in records)
    if few:
        return "One repetition: there is no interval to show."
    return "Points are medians, whiskers the middle 80% of the repetitions."


def decode_against_depth(run: Run) -> Chart | Missing:
    title = "Decode speed against depth"
    found = _draw_against(run.tests("decode"), "n_depth", "decode_tps", "decode")
    if found is None:
        return Missing(title, "no decode test is among the results")
    series, rows = found
    summary = f"Decode runs at {series.y[0]:.1f} tokens per second after {series.x[0]:,.0f} tokens"
    if len(series.y) > 1:
        change = series.y[-1] / series.y[0] - 1 if series.y[0] else 0.0
        summary += f" and at {series.y[-1]:.1f} after {series.x[-1]:,.0f} ({change:+.0%})"
    return Chart(
        "decode-depth",
        title,
        summary + ".",
        "tokens already in the context",
        (Panel("tokens/s", (series,)),),
        ("depth, tokens", "tokens/s, median (p10–p90)", "repetitions"),
        rows,
        _repeats_note(run.tests("decode")),
    )


def prefill_against_length(run: Run) -> Chart | Missing:
    title = "Prefill speed against prompt length"
    found = _draw_against(run.tests("prefill"), "n_prompt", "prefill_tps", "prefill")
    if found is None:
        return Missing(title, "no prefill test is among the results")
    series, rows = found
    best = max(range(len(series.y)), key=series.y.__getitem__)
    summary = (
        f"Prefill is fastest at {series.x[best]:,.0f} prompt tokens: "
        f"{series.y[best]:,.0f} tokens per second."
    )
    return Chart(
        "prefill-length",
        title,
        summary,
        "prompt tokens",
        (Panel("tokens/s", (series,)),),
        ("prompt, tokens", "tokens/s, median (p10–p90)", "repetitions"),
        rows,
        _repeats_note(run.tests("prefill")),
    )


_KINDS = (
    ("anon_bytes", "anonymous"),
    ("file_bytes", "file pages"),
    ("pss_bytes", "PSS"),
    ("rss_bytes", "RSS"),
    ("swap_bytes", "swap"),
)


def memory_over_time(run: Run) -> Chart | Missing:
    title = "Memory by kind over time"
    times: dict[str, list[float]] = {name: [] for name, _ in _KINDS}
    values: dict[str, list[float]] = {name: [] for name, _ in _KINDS}
    for start_s, _, trace in timed_traces(run):
        rows = memory_rows(trace.get("memory", []))
        for column, name in enumerate(MEMORY_FIELDS, 1):
            known = [row for row in rows if row[column] is not None]
            times[name] += [start_s + row[0] * NS for row in known]
            values[name] += [row[column] / MIB for row in known]
    series = []
    for name, label in _KINDS:
        if values[name] and (name != "swap_bytes" or max(values[name]) > 0):
            order = sorted(range(len(times[name])), key=times[name].__getitem__)
            x, y = thin([times[name][i] for i in order], [values[name][i] for i in order])
            series.append(Series(label, x, y, "line"))
    if not series:
        return Missing(title, "the results hold no memory samples")
    limit_bytes, used = memory_limit(run), peak(run, "peak_anon_bytes")
    summary = "; ".join(f"{s.name} peaks at {max(s.y):,.1f} MiB" for s in series)
    if limit_bytes is not None and used is not None:
        summary += (
            f". The board has {format_bytes(limit_bytes)}: anonymous memory took "
            f"{used / limit_bytes:.1%} of it"
        )
    limit = (
        LimitLine(limit_bytes / MIB, f"limit {format_bytes(limit_bytes)}") if limit_bytes else None
    )
    return Chart(
        "memory-time",
        title,
        summary[0].upper() + summary[1:] + ".",
        "seconds",
        (Panel("MiB", tuple(series), limit),),
        ("kind", "lowest, MiB", "highest, MiB", "samples"),
        tuple(
            (
                label,
                f"{min(values[name]):,.1f}",
                f"{max(values[name]):,.1f}",
                str(len(values[name])),
            )
            for name, label in _KINDS
            if values[name]
        ),
        "Anonymous memory is what a board dies of; file pages can be dropped and read again.",
    )


def chart_predictions(run: Run) -> Chart | Missing:
    title = "Predicted and measured"
    promised = run.head.get("predicted")
    if not promised:
        return Missing(title, "the results carry no plan: measure a bundle, not a bare model file")
    if not is_planned_machine(run):
        return Missing(title, f"the plan was made for {promised.get('device')}, not this machine")
    pairs = [
        ("decode", "tokens/s", promised.get("decode_tps"), median(best_decode(run), "decode_tps")),
        (
            "prefill",
            "tokens/s",
            promised.get("prefill_tps"),
            median(longest_prefill(run), "prefill_tps"),
        ),
        (
            "anonymous memory",
            "bytes",
            promised.get("anonymous_bytes"),
            peak(run, "peak_anon_bytes"),
        ),
    ]
    known = [(n, unit, float(p), float(m)) for n, unit, p, m in pairs if p and m]
    if not known:
        return Missing(title, "the plan made no prediction that was measured")
    bound = promised.get("error_bound")
    band = (max(0.0, 1 - bound), 1 + bound) if isinstance(bound, (int, float)) else None
    summary = "; ".join(f"{n} came out at {m / p:.2f} times the plan" for n, _, p, m in known)
    text = {"tokens/s": lambda v: f"{v:,.1f} tokens/s", "bytes": lambda v: format_bytes(int(v))}
    return Chart(
        "predicted",
        title,
        summary[0].upper() + summary[1:] + ".",
        "measured ÷ predicted",
        (
            Bars(
                "measured ÷ predicted",
                tuple((n, m / p, f"{m / p:.2f}×") for n, _, p, m in known),
                band,
                1.0,
            ),
        ),
        ("figure", "predicted", "measured", "ratio"),
        tuple((n, text[u](p), text[u](m), f"{m / p:.2f}") for n, u, p, m in known),
        f"The band is the plan's own error bound, ±{bound:.0%} on speed." if band else None,
    )


def find_ecdf(values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Find the sorted values, and the percent of all that are not larger than each."""
    ordered = sorted(values)
    shares = [100 * (i + 1) / len(ordered) for i in range(len(ordered))]
    return thin([ordered[0], *ordered], [0.0, *shares])


def _distribution_rows(values: Sequence[float]) -> tuple[tuple[str, ...], ...]:
    points = (("fastest", 0.0), ("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("slowest", 1.0))
    return tuple((name, format_seconds(quantile(values, q))) for name, q in points)


def answer_times(run: Run, within_s: float | None = None) -> Chart | Missing:
    """End-to-end seconds against the budget given, or the deadline stored in the traces."""
    title = "Answer time against the budget"
    traces = [t for r in run.tests("end-to-end") for t in r.get("traces", [])]
    times = [measure(expand_trace(t)).end_to_end_s for t in traces]
    if len(times) < 2:
        return Missing(title, "fewer than two end-to-end answers are among the results")
    deadlines = {t.get("deadline_s") for t in traces} - {None}
    budget = within_s or (deadlines.pop() if len(deadlines) == 1 else None)
    return _distribution("answer-times", title, "answers", times, budget)


def latencies(run: Run, within_s: float | None = None) -> Chart | Missing:
    """Seconds per inference of a network that is no language model, against the budget given."""
    title = "Latency against the budget"
    times = [
        float(value)
        for record in run.records
        for figures in record.get("figures") or []
        if isinstance(value := figures.get("latency_s"), (int, float))
    ]
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
    return Chart(
        key,
        title,
        summary + ".",
        "seconds",
        (
            Panel(
                f"% of {what}",
                (Series(what, *find_ecdf(times), "steps"),),
                LimitLine(budget_s, f"budget {format_seconds(budget_s)}", "x")
                if budget_s
                else None,
            ),
        ),
        ("point", "time"),
        _distribution_rows(times),
        None if budget_s else "No budget was given: edge report --within 5s draws one.",
    )


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
    summary = (
        f"Of {len(gaps):,} gaps half are below {format_seconds(quantile(seconds, 0.5))}, 95 % "
        f"below {format_seconds(quantile(seconds, 0.95))}; the longest is "
        f"{format_seconds(max(seconds))}."
    )
    return Chart(
        "token-gaps",
        title,
        summary,
        "milliseconds",
        (Panel("% of gaps", (Series("gaps", *find_ecdf(gaps), "steps"),)),),
        ("point", "gap"),
        _distribution_rows(seconds),
        "A reader notices the longest gaps, not the mean.",
    )
