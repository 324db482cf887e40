"""Several runs: engines, recipes and boards side by side, quality against size."""

from collections.abc import Sequence
from typing import Any

from boardfit.edge.report.charts import NAN, sentence
from boardfit.edge.report.draw import (
    FIRST_IN,
    SERIES,
    Chart,
    Missing,
    make_bars,
    shorten_label,
)
from boardfit.edge.report.figures import Run, run_labels
from boardfit.edge.report.kinds import Column, find_kind, group_alike, name_kind
from boardfit.edge.units import MIB, format_bytes

# More runs than this are listed in the table and left out of the picture.
MAX_BARS = 8


def side_by_side(runs: Sequence[Run]) -> Chart | Missing:
    """Bars for each figure of runs of one kind."""
    title, columns = "Side by side", list_columns(runs)
    shown = list(zip(run_labels(runs), runs, strict=True))[-MAX_BARS:]
    panels, notes = [], []
    for column in columns:
        known = [(label, v) for label, run in shown if (v := column.find(run)) is not None]
        if not known or (scale := column.scale) is None:
            continue
        bars = [(label, value / scale, column.text(value)) for label, value in known]
        panels.append(make_bars(column.heading + (", MiB" if scale == MIB else ""), bars))
        label, _, text = max(bars, key=lambda bar: bar[1])
        notes.append(f"most {column.heading.split(',')[0]}: {label} with {text}")
    if not panels:
        return Missing(title, "the runs share no figure")
    left_out = len(runs) - len(shown)
    note = f"The newest {MAX_BARS} runs; {left_out} older ones are in the table."
    header = ("run", *(column.heading for column in columns))
    return Chart(
        "side-by-side", title, sentence(notes), "", panels, header, fleet_rows(runs),
        note if left_out else None,
    )  # fmt: skip


def fleet_rows(runs: Sequence[Run]) -> tuple[tuple[str, ...], ...]:
    """One row per run: its label and every column's text, `–` where nothing was measured."""

    def show(column: Column, run: Run) -> str:
        return "–" if (value := column.find(run)) is None else column.text(value)

    return tuple(
        (label, *(show(column, run) for column in list_columns(runs)))
        for label, run in zip(run_labels(runs), runs, strict=True)
    )


def fleet_verdict(runs: Sequence[Run]) -> str:
    """One sentence over several runs of one kind: the best of them, where they are not alike."""
    groups = group_alike(runs)
    if len(groups) > 1:
        names = ", ".join(dict.fromkeys(name_kind(group[0]) for group in groups))
        what = f"{len(runs)} runs of {len(groups)} kinds ({names})"
        return f"{what}. Kinds are not compared with one another."
    labels, notes = run_labels(runs), []
    for column in list_columns(runs):
        known = [
            (value, i) for i, run in enumerate(runs) if (value := column.find(run)) is not None
        ]
        if len(known) < 2 or not column.praise:
            continue
        value, i = max(known) if column.more_is_better else min(known)
        if sum(column.text(other) == column.text(value) for other, _ in known) == 1:
            unit = " tokens/s" if column.heading.endswith("tokens/s") else ""
            notes.append(f"{labels[i]} {column.praise} ({column.text(value)}{unit})")
    what = " and ".join(notes) or "none is ahead in a figure that they share"
    return f"Of {len(runs)} runs, {what}."


def list_columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    """The columns of runs of one kind."""
    return find_kind(runs[0]).columns if runs else ()


def heat_shares(runs: Sequence[Run]) -> list[tuple[float | None, ...]]:
    """How near each cell of `fleet_rows` is to the best of its column, 1 at the best."""
    columns = []
    for column in list_columns(runs):
        values = [column.find(run) for run in runs]
        known = [v for v in values if v]
        best = (max(known) if column.more_is_better else min(known)) if known else None
        pairs = [(v, best) if column.more_is_better else (best, v) for v in values]
        columns.append([a / b if a and b else None for a, b in pairs])
    return list(zip(*columns, strict=True))


def divergence(run: Run) -> tuple[float, float] | None:
    """(mean KL divergence from the source, its standard error) of the quality card's first text. An
    error that is not known is NaN, which draws no whisker.
    """
    texts = (run.head.get("quality") or {}).get("texts")
    for row in texts if isinstance(texts, list) else []:
        value = row.get("kld_mean") if isinstance(row, dict) else None
        if value is not None and value >= 0:
            error = row.get("kld_mean_stderr")
            return float(value), NAN if error is None else abs(float(error))
    return None


def quality_against_size(runs: Sequence[Run]) -> Chart | Missing:
    title = "Quality against size"
    points: dict[tuple[str, int], tuple[int, str, float, float]] = {}
    for run in runs:
        size, found = run.head["artifact"].get("n_bytes"), divergence(run)
        if found is not None and isinstance(size, int):
            name = str(run.head["settings"].get("recipe") or run.head["engine"].get("quant"))
            points[(str(run.head["artifact"].get("sha256")), size)] = (size, name, *found)
    if not points:
        return Missing(title, "no bundle here carries a quality card (edge build --quality)")
    found_points = sorted(points.values())
    size, name, value, _ = min(found_points, key=lambda point: point[2])

    def draw(axes: Any) -> None:
        for size, name, value, error in found_points:
            axes.errorbar(size / MIB, value, 2 * error, fmt="o", color=SERIES[0])
            place = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 8.5}
            axes.annotate(shorten_label(name), (size / MIB, value), **place)
        axes.set(ylabel="KL divergence, nats", ylim=(0, axes.get_ylim()[1]))

    return Chart(
        "quality-size", title,
        f"Nearest to its source is {name} ({format_bytes(size)}): a mean divergence of "
        f"{value:.3g} nats per token.",
        "file, MiB", [(FIRST_IN, draw)],
        ("recipe", "file", "mean divergence, nats"),
        [(name, format_bytes(size), f"{value:.3g}") for size, name, value, _ in found_points],
        "Lower is nearer to the unquantized model. Whiskers: two standard errors.",
    )  # fmt: skip
