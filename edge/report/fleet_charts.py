"""Charts across runs: engines, recipes and boards side by side, a heat map, quality and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from boardfit.edge.report.chart import Bars, Chart, Missing, Panel, Series
from boardfit.edge.report.figures import (
    Run,
    best_decode,
    longest_prefill,
    median,
    peak,
    run_labels,
)
from boardfit.edge.units import MIB, format_bytes, format_seconds

# More runs than this are listed in the table and left out of the picture.
MAX_BARS = 8


def find_decode(run: Run) -> float | None:
    return median(best_decode(run), "decode_tps")


def find_prefill(run: Run) -> float | None:
    return median(longest_prefill(run), "prefill_tps")


def find_ttft(run: Run) -> float | None:
    return median(next(iter(run.tests("end-to-end")), None), "ttft_s")


def find_memory(run: Run) -> float | None:
    value = peak(run, "peak_anon_bytes")
    return None if value is None else float(value)


def find_load(run: Run) -> float | None:
    """The first load test's, or what a network's own record holds."""
    return median(next(iter(run.tests("load")), run.head), "load_s")


# Column: heading, the figure, its text, whether more is better.
Column = tuple[str, Callable[[Run], float | None], Callable[[float], str], bool]
COLUMNS: tuple[Column, ...] = (
    ("decode, tokens/s", find_decode, lambda v: f"{v:,.1f}", True),
    ("prefill, tokens/s", find_prefill, lambda v: f"{v:,.0f}", True),
    ("time to first token", find_ttft, format_seconds, False),
    ("anonymous memory", find_memory, lambda v: format_bytes(int(v)), False),
    ("load", find_load, format_seconds, False),
)


def side_by_side(runs: Sequence[Run]) -> Chart | Missing:
    title = "Side by side"
    if len(runs) < 2:
        return Missing(title, "one run has nothing to stand beside; name more result files")
    labels = run_labels(runs)
    shown = list(zip(labels, runs, strict=True))[-MAX_BARS:]
    panels, notes = [], []
    for heading, figure, text, _ in COLUMNS[:2] + COLUMNS[3:4]:
        rows = [(label, v, text(v)) for label, run in shown if (v := figure(run)) is not None]
        if not rows:
            continue
        unit = MIB if figure is find_memory else 1.0
        panels.append(
            Bars(
                heading if unit == 1.0 else f"{heading}, MiB",
                tuple((label, value / unit, shown_as) for label, value, shown_as in rows),
            )
        )
        most = max(rows, key=lambda row: row[1])
        notes.append(f"most {heading.split(',')[0]}: {most[0]} with {most[2]}")
    if not panels:
        return Missing(title, "the runs share no figure")
    left_out = len(runs) - len(shown)
    return Chart(
        "side-by-side",
        title,
        "; ".join(notes)[:1].upper() + "; ".join(notes)[1:] + ".",
        "",
        tuple(panels),
        ("run", *(heading for heading, _, _, _ in COLUMNS)),
        fleet_rows(runs),
        f"The newest {MAX_BARS} runs; {left_out} older ones are in the table."
        if left_out
        else None,
    )


def fleet_rows(runs: Sequence[Run]) -> tuple[tuple[str, ...], ...]:
    """One row per run: its label and every column's text, `–` where nothing was measured."""
    return tuple(
        (
            label,
            *(
                "–" if (value := figure(run)) is None else text(value)
                for _, figure, text, _ in COLUMNS
            ),
        )
        for label, run in zip(run_labels(runs), runs, strict=True)
    )


def fleet_verdict(runs: Sequence[Run]) -> str:
    """One sentence over several runs: the fastest and the smallest of them."""
    labels, notes = run_labels(runs), []
    any_decodes = any(find_decode(run) for run in runs)
    for figure, text, most, words in (
        (find_decode, "{:,.1f} tokens/s", True, "decodes fastest"),
        (find_memory, None, False, "needs the least memory"),
    ):
        known = [
            (value, i)
            for i, run in enumerate(runs)
            # A small network beside language models is no smaller language model.
            if (value := figure(run)) is not None and (find_decode(run) or not any_decodes)
        ]
        if known:
            value, i = max(known) if most else min(known)
            shown = text.format(value) if text else format_bytes(int(value))
            notes.append(f"{labels[i]} {words} ({shown})")
    what = " and ".join(notes) or "no figure is common to them"
    return f"Of {len(runs)} runs, {what}."


def heat_shares(runs: Sequence[Run]) -> list[tuple[float | None, ...]]:
    """How good each cell of `fleet_rows` is, 1 for the best of its column; None where it was not
    measured. A rate is its share of the best; a time or size is the best's share of it.
    """
    columns = []
    for _, figure, _, more_is_better in COLUMNS:
        values = [figure(run) for run in runs]
        known = [v for v in values if v]
        best = (max(known) if more_is_better else min(known)) if known else None
        columns.append(
            [
                None if not v or best is None else (v / best if more_is_better else best / v)
                for v in values
            ]
        )
    return list(zip(*columns, strict=True))


def divergence(run: Run) -> tuple[float, float | None] | None:
    """(mean KL divergence from the source, its standard error) of the first text of the bundle's
    quality card, None without one.
    """
    card = run.head.get("quality")
    texts = card.get("texts") if isinstance(card, dict) else None
    for row in texts if isinstance(texts, list) else []:
        value = row.get("kld_mean") if isinstance(row, dict) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
            error = row.get("kld_mean_stderr")
            return float(value), float(error) if isinstance(error, (int, float)) else None
    return None


def quality_against_size(runs: Sequence[Run]) -> Chart | Missing:
    title = "Quality against size"
    points: dict[tuple[str, int], tuple[str, float, float | None]] = {}
    for run in runs:
        size, found = run.head["artifact"].get("n_bytes"), divergence(run)
        if found is not None and isinstance(size, int):
            name = str(run.head["settings"].get("recipe") or run.head["engine"].get("quant"))
            points[(str(run.head["artifact"].get("sha256")), size)] = (name, *found)
    if not points:
        return Missing(title, "no bundle here carries a quality card (edge build --quality)")
    found_points = sorted((size, *rest) for (_, size), rest in points.items())
    sizes = tuple(size / MIB for size, *_ in found_points)
    values = tuple(value for _, _, value, _ in found_points)
    errors = [error for *_, error in found_points]
    best = min(found_points, key=lambda p: p[2])
    return Chart(
        "quality-size",
        title,
        f"Nearest to its source is {best[1]} ({format_bytes(best[0])}): a mean divergence of "
        f"{best[2]:.3g} nats per token.",
        "file, MiB",
        (
            Panel(
                "KL divergence, nats",
                (
                    Series(
                        "recipes",
                        sizes,
                        values,
                        "points",
                        low=tuple(
                            None if e is None else max(0.0, v - 2 * e)
                            for v, e in zip(values, errors, strict=True)
                        ),
                        high=tuple(
                            None if e is None else v + 2 * e
                            for v, e in zip(values, errors, strict=True)
                        ),
                        labels=tuple(name for _, name, _, _ in found_points),
                    ),
                ),
            ),
        ),
        ("recipe", "file", "mean divergence, nats"),
        tuple((name, format_bytes(size), f"{value:.3g}") for size, name, value, _ in found_points),
        "Lower is nearer to the unquantized model. Whiskers: two standard errors.",
    )
