"""Charts drawn by matplotlib, as SVG that follows the page's colours, or as pixels.

matplotlib is imported inside functions and used without pyplot: no window, no global state. In SVG
CSS variables take the place of the colours: one picture serves light, dark and print.
"""

import html
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boardfit.edge.errors import EngineMissingError
from boardfit.edge.requirements import install_line
from boardfit.edge.units import printable

EXTRA = "report"
# Draws into matplotlib's axes.
Draw = Callable[[Any], None]

# Colours on paper, those of charts.mplstyle. No other occurs in our charts.
INK, MUTED, GRID, BAND = "#1b1f24", "#57606a", "#d8dee4", "#e6edf5"
SERIES = ("#0a58a8", "#b3470b", "#1a7037", "#7a3fd0", "#b0123f")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", BAND: "--band"}
VARIABLES |= {colour: f"--s{number}" for number, colour in enumerate(SERIES, 1)}

# A limit this much above the data is named alone: in scale it would flatten everything.
FAR = 3.0
WIDTH_IN, FIRST_IN, NEXT_IN = 4.4, 2.75, 1.25
MAX_LABEL = 44
LINE_CHARS, LEGEND_CHARS = 118, 54  # of a picture's text, of a legend


@dataclass(frozen=True)
class Chart:
    """`summary` is the text alternative: one or two sentences that describe the picture. `header`
    and `rows` are the same figures as a table. `panels` are a height in inches and what draws it.
    """

    key: str
    title: str
    summary: str
    x_label: str
    panels: Sequence[tuple[float, Draw]]
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str | None = None


@dataclass(frozen=True)
class Missing:
    """A chart that cannot be drawn, and why."""

    title: str
    reason: str


def style(key: str = "") -> AbstractContextManager[None]:
    """matplotlib's settings for our charts, with ids of its own for each `key`. Raises
    EngineMissingError without the extra.
    """
    try:
        with _root_folder():  # matplotlib reads settings from the current folder
            import matplotlib
    except ModuleNotFoundError:
        raise EngineMissingError(
            "charts need the Python package 'matplotlib', which is not installed",
            next_step=f"{install_line(EXTRA)}, or --format md",
        ) from None
    settings = Path(__file__).with_name("charts.mplstyle")
    context: AbstractContextManager[None] = matplotlib.rc_context(
        {"svg.hashsalt": f"boardfit-{key}"}, settings
    )
    return context


@contextmanager
def _root_folder() -> Iterator[None]:
    """Use `/` as the current folder, where only root can write files."""
    before = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    os.chdir("/")
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def draw_svg(chart: Chart) -> str:
    """The chart as one `<svg role="img">` with title and description, ids unique to the chart."""
    with style(chart.key):
        from matplotlib.figure import Figure

        size = (WIDTH_IN, sum(height for height, _ in chart.panels))
        figure = Figure(size, layout="constrained")
        draw_into(figure, chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return fit_for_page(buffer.getvalue(), chart)


def fit_for_page(svg: str, chart: Chart) -> str:
    """matplotlib's SVG scalable, named, described, in the page's colours."""
    head, body = svg[svg.index("<svg") :].split(">", 1)
    view = re.search(r'viewBox="[\d. ]+"', head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(
        r"font(?:-family)?: ([\d.]+px)?[^;\"]*",
        lambda found: f"font-size: {found[1]}" if found[1] else "font-family: inherit",
        body,
    )
    body = re.sub("|".join(VARIABLES), lambda found: f"var({VARIABLES[found[0]]})", body)
    names = " ".join(f"{chart.key}-{tag}" for tag in ("title", "desc"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {view[0] if view else ""} role="img" '
        f'aria-labelledby="{names}"><title id="{chart.key}-title">{html.escape(chart.title)}'
        f'</title><desc id="{chart.key}-desc">{html.escape(chart.summary)}</desc>{body}'
    )


def draw_png(charts: Sequence[Chart], lines: Sequence[str]) -> bytes:
    """All charts on one sheet of paper, two in a row, below some lines of text."""
    rows = [charts[i : i + 2] for i in range(0, len(charts), 2)]
    heights = [0.35 + max(sum(high for high, _ in chart.panels) for chart in row) for row in rows]
    text = "\n".join(textwrap.fill(printable(line, 1000), LINE_CHARS) for line in lines)
    with style():
        from matplotlib.figure import Figure

        size = (2 * WIDTH_IN, 0.5 + 0.2 * text.count("\n") + sum(heights))
        figure: Any = Figure(size, layout="constrained", facecolor="white")
        figure.suptitle(text, x=0.01, ha="left", fontsize=9)
        if rows:
            places = figure.subfigures(len(rows), 2, height_ratios=heights, squeeze=False)
            for place, chart in zip(places.flat, charts, strict=False):
                place.suptitle(chart.title, fontsize=10, weight="bold")
                draw_into(place, chart)
        buffer = io.BytesIO()
        settings = {"facecolor": "white", "metadata": {"Software": None}}
        figure.savefig(buffer, format="png", dpi=110, **settings)
    return buffer.getvalue()


def draw_into(figure: Any, chart: Chart) -> None:
    """Draw a chart's panels below one another into a matplotlib figure or subfigure."""
    heights = [height for height, _ in chart.panels]
    share = bool(chart.x_label)
    places = figure.subplots(
        len(heights), 1, height_ratios=heights, squeeze=False, sharex=share
    ).flat
    for axes, (_, draw) in zip(places, chart.panels, strict=True):
        draw(axes)
        names = axes.get_legend_handles_labels()[1]
        if len(names) > 1:
            columns = max(1, min(3, LEGEND_CHARS // (max(map(len, names)) + 6)))
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    if share:
        axes.set_xlabel(chart.x_label)


def shorten_label(text: str) -> str:
    """A name from a stranger's file as a label: without control characters, and short."""
    return printable(text, MAX_LABEL)


def draw_limit(axes: Any, axis: str, value: float, label: str, largest: float) -> None:
    """Draw a limit of the `x` or `y` axis: as a line, or only its name where it is far away."""
    if value > FAR * largest > 0:
        label += f", {value / largest:,.0f} times the {'peak ↑' if axis == 'y' else 'slowest →'}"
    elif axis == "y":
        axes.axhline(value, color=SERIES[4], linestyle="--", linewidth=1.2)
    else:
        axes.axvline(value, color=SERIES[4], linestyle="--", linewidth=1.2)
        axes.set_xlim(right=max(axes.get_xlim()[1], 1.05 * value))
    if axis == "y":
        axes.set_ylim(top=1.2 * axes.get_ylim()[1])
    at, side = ((0.99, 0.97), "top") if axis == "y" else ((0.99, 0.03), "bottom")
    look = {"color": SERIES[4], "fontsize": 9}
    axes.text(*at, label, transform=axes.transAxes, ha="right", va=side, **look)


def make_bars(
    x_label: str,
    rows: Sequence[tuple[str, float, str]],
    band: tuple[float, float] | None = None,
    mark: float = 0.0,
) -> tuple[float, Draw]:
    """A panel of horizontal bars (label, value, text). `band` is the range that was promised.
    Labels stand above the bars: names may be long and a phone narrow.
    """

    def draw(axes: Any) -> None:
        edge = max(mark, *(band or ()), *(value for _, value, _ in rows)) * 1.22 or 1.0
        if band:
            axes.axvspan(*band, color=BAND, zorder=0)
        if mark:
            axes.axvline(mark, color=MUTED, linestyle="--", linewidth=1.1)
        for i, (label, value, text) in enumerate(rows):
            axes.barh(-i, value, height=0.36, color=SERIES[0])
            axes.text(0, -i + 0.25, shorten_label(label), va="bottom", fontsize=9.5)
            axes.text(value + edge * 0.012, -i, text, va="center", fontsize=9.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set(xlim=(0, edge), ylim=(0.6 - len(rows), 0.75), xlabel=x_label)

    return 0.75 + 0.5 * len(rows), draw
