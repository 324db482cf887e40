"""Charts across runs: engines, recipes and boards side by side, a heat map, quality and size."""

from __future__ import annotations

from collections.abc import Sequence

from boardfit.edge.report.chart import Bars, Chart, Missing, Panel, Series
from boardfit.edge.report.columns import Column
from boardfit.edge.report.figures import Run, run_labels
from boardfit.edge.report.kinds import find_kind, group_alike, name_kind
from boardfit.edge.units import MIB, format_bytes

# More runs than this are listed in the table and left out of the picture.
MAX_BARS = 8


def side_by_side(runs: Sequence[Run]) -> Chart | Missing:
    title = "Side by side"
    if len(runs) < 2:
        return Missing(title, "one run has nothing to stand beside; name more result files")
    labels = run_labels(runs)
    shown = list(zip(labels, runs, strict=True))[-MAX_BARS:]
    panels, notes = [], []
    columns = list_columns(runs)
    for column in columns:
        rows = [
            (label, v, column.text(v))
            for label, run in shown
            if (v := column.find(run)) is not None
        ]
        if not rows or column.scale is None:
            continue
        scale = column.scale
        panels.append(
            Bars(
                column.heading if scale == 1.0 else f"{column.heading}, MiB",
                tuple((label, value / scale, shown_as) for label, value, shown_as in rows),
            )
        )
        most = max(rows, key=lambda row: row[1])
        notes.append(f"most {column.heading.split(',')[0]}: {most[0]} with {most[2]}")
    if not panels:
        return Missing(title, "the runs share no figure")
    left_out = len(runs) - len(shown)
    return Chart(
        "side-by-side",
        title,
        "; ".join(notes)[:1].upper() + "; ".join(notes)[1:] + ".",
        "",
        tuple(panels),
        ("run", *(column.heading for column in columns)),
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
                "–" if (value := column.find(run)) is None else column.text(value)
                for column in list_columns(runs)
            ),
        )
        for label, run in zip(run_labels(runs), runs, strict=True)
    )


def fleet_verdict(runs: Sequence[Run]) -> str:
    """One sentence over several runs of one kind: the best of them, where they are not alike.

    Runs of several kinds are not compared.
    """
    groups = group_alike(runs)
    if len(groups) > 1:
        names = ", ".join(dict.fromkeys(name_kind(group[0]) for group in groups))
        return (
            f"{len(runs)} runs of {len(groups)} kinds ({names}). Kinds are not compared with one "
            "another."
        )
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
    """How good each cell of `fleet_rows` is, 1 for the best of its column; None where it was not
    measured. A rate is its share of the best; a time or size is the best's share of it.
    """
    columns = []
    for column in list_columns(runs):
        values = [column.find(run) for run in runs]
        known = [v for v in values if v]
        best = (max(known) if column.more_is_better else min(known)) if known else None
        columns.append(
            [
                None if not v or best is None else (v / best if column.more_is_better else best / v)
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
