"""Charts drawn by matplotlib, as SVG that follows the page's colours, or as pixels.

matplotlib is imported inside functions and used without pyplot: no window, no global state. In SVG
CSS variables take the place of the colours: one picture serves light, dark and print.
"""

import dataclasses
import io
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from boardfit.edge.errors import EngineMissingError
from boardfit.edge.report.chart import Bars, Chart, LimitLine, Panel, Series
from boardfit.edge.requirements import install_line
from boardfit.edge.units import printable

EXTRA = "report"
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

# Colours on paper. No other occurs in our charts.
INK, MUTED, GRID, BAND = "#1b1f24", "#57606a", "#d8dee4", "#e6edf5"
SERIES = ("#0a58a8", "#b3470b", "#1a7037", "#7a3fd0", "#b0123f")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", BAND: "--band"}
VARIABLES |= {colour: f"--s{number}" for number, colour in enumerate(SERIES, 1)}
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")

# A limit this much above the data is named at the edge: in scale it would flatten everything.
FAR = 3.0
WIDTH_IN = 4.4
MAX_LABEL, MAX_TEXT = 44, 1000
PNG_CHARS = 118
LEGEND_CHARS = 54  # what one line of a legend holds


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


def panel_heights_in(chart: Chart) -> list[float]:
    heights = [2.75, *[1.25] * (len(chart.panels) - 1)]
    return [
        0.75 + 0.5 * len(panel.rows) if isinstance(panel, Bars) else height
        for panel, height in zip(chart.panels, heights, strict=True)
    ]


def plain(value: Any) -> Any:
    """A chart, or a part of it, without control characters: names come from files of strangers."""
    if isinstance(value, str):
        return "\n".join(printable(line, MAX_TEXT) for line in value.split("\n"))
    if isinstance(value, tuple):
        return value if value and isinstance(value[0], (int, float)) else tuple(map(plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value)(**parts)
    return value


def draw_svg(chart: Chart) -> str:
    """The chart as one `<svg role="img">` with title and description, ids unique to the chart."""
    chart = plain(chart)
    with style(chart.key):
        from matplotlib.figure import Figure

        size = (WIDTH_IN, sum(panel_heights_in(chart)))
        figure = Figure(figsize=size, layout="constrained")
        draw_into(figure, chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return accessible(buffer.getvalue(), chart)


def draw_png(charts: Sequence[Chart], heading: str, lines: Sequence[str]) -> bytes:
    """All charts on one sheet of paper, two in a row, below a heading and some lines of text."""
    charts, heading, lines = [plain(chart) for chart in charts], plain(heading), plain(tuple(lines))
    with style():
        import matplotlib
        from matplotlib.figure import Figure

        matplotlib.rcParams.update({"savefig.facecolor": "white"})
        rows = [charts[i : i + 2] for i in range(0, len(charts), 2)]
        heights = [max(sum(panel_heights_in(c)) for c in row) + 0.35 for row in rows]
        lines = [part for line in lines for part in textwrap.wrap(line, PNG_CHARS)]
        text_in = 0.55 + 0.2 * len(lines)
        figure: Any = Figure(figsize=(2 * WIDTH_IN, text_in + sum(heights)), layout="constrained")
        parts = figure.subfigures(1 + len(rows), 1, height_ratios=[text_in, *heights])
        parts = list(parts) if rows else [parts]
        parts[0].text(0.01, 0.95, heading[:110], va="top", fontsize=13, weight="bold")
        below = 1 - 0.42 / text_in
        parts[0].text(0.01, below, "\n".join(lines), va="top", fontsize=9)
        for part, row in zip(parts[1:], rows, strict=True):
            for place, chart in zip(part.subfigures(1, 2).flat, row, strict=False):
                place.suptitle(chart.title, fontsize=10, weight="bold")
                draw_into(place, chart)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def draw_into(figure: Any, chart: Chart) -> None:
    """Draw a chart's panels below one another into a matplotlib figure or subfigure."""
    share = not any(isinstance(panel, Bars) for panel in chart.panels)
    axes = figure.subplots(
        len(chart.panels), 1, height_ratios=panel_heights_in(chart), squeeze=False, sharex=share
    )
    for place, panel in zip(axes[:, 0], chart.panels, strict=True):
        if isinstance(panel, Bars):
            draw_bars(place, panel)
        else:
            draw_panel(place, panel)
    if share:
        axes[-1, 0].set_xlabel(chart.x_label)


def draw_panel(axes: Any, panel: Panel) -> None:
    for i, series in enumerate(panel.series):
        draw_series(axes, series, i)
    axes.set_ylabel(panel.y_label)
    if panel.y_from_zero:
        axes.set_ylim(bottom=0, top=max(1e-9, axes.get_ylim()[1]))
    if panel.limit is not None:
        draw_limit(axes, panel.limit, panel.series)
    if len(panel.series) > 1:
        longest = max(len(series.name[:MAX_LABEL]) for series in panel.series)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9, handlelength=1.8,
            ncols=max(1, min(3, LEGEND_CHARS // (longest + 6))), borderaxespad=0.2,
            columnspacing=1.0,
        )  # fmt: skip


def draw_series(axes: Any, series: Series, index: int) -> None:
    colour = SERIES[index % len(SERIES)]
    few = len(series.x) <= 30
    look = {"color": colour, "label": series.name[:MAX_LABEL]}
    if series.style == "points":
        axes.plot(series.x, series.y, MARKERS[index % 5], **look, alpha=1 if few else 0.6)
    elif series.style == "steps":
        axes.plot(series.x, series.y, **look, drawstyle="steps-post")
    else:
        marker = MARKERS[index % 5] if few else None
        axes.plot(series.x, series.y, **look, linestyle=DASHES[index % 5], marker=marker)
    for x, y, low, high in zip(
        series.x, series.y, series.low or (), series.high or (), strict=False
    ):
        if low is not None and high is not None:
            bounds = [[max(0.0, y - low)], [max(0.0, high - y)]]
            axes.errorbar(x, y, bounds, color=colour, capsize=3, linewidth=1.1)
    for x, y, label in zip(series.x, series.y, series.labels or (), strict=False):
        axes.annotate(
            label[:MAX_LABEL], (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8.5
        )


def draw_limit(axes: Any, limit: LimitLine, series: Sequence[Series]) -> None:
    """A line in scale, or a note at the edge where the limit is far beyond the data."""
    is_x = limit.axis == "x"
    largest = max((max(s.x if is_x else s.y, default=0.0) for s in series), default=0)
    label, place = limit.label, axes.transAxes
    at = (0.99, 0.03) if is_x else (0.99, 0.97)
    if largest > 0 and limit.value > FAR * largest:
        times = f"{limit.value / largest:,.0f} times the"
        label = f"{label} → ({times} slowest)" if is_x else f"{label}, {times} peak ↑"
        if not is_x:
            axes.set_ylim(top=axes.get_ylim()[1] * 1.2)
    elif is_x:
        axes.axvline(limit.value, color=SERIES[4], linestyle="--", linewidth=1.2)
        axes.set_xlim(right=max(axes.get_xlim()[1], limit.value * 1.05))
        label, at, place = f"{label} ", (limit.value, 0.03), axes.get_xaxis_transform()
    else:
        axes.axhline(limit.value, color=SERIES[4], linestyle="--", linewidth=1.2)
        axes.set_ylim(top=max(axes.get_ylim()[1], limit.value * 1.15))
        at, place, is_x = (0.99, limit.value), axes.get_yaxis_transform(), True
    axes.text(*at, label, transform=place, ha="right", va="bottom" if is_x else "top",
              color=SERIES[4], fontsize=9)  # fmt: skip


def draw_bars(axes: Any, bars: Bars) -> None:
    """Labels stand above the bars: names may be long and a phone narrow."""
    largest = max((value for _, value, _ in bars.rows), default=1.0)
    edge = max(largest, (bars.band or (0, 0))[1], bars.mark or 0) * 1.22 or 1.0
    if bars.band:
        axes.axvspan(*bars.band, color=BAND, zorder=0)
    if bars.mark is not None:
        axes.axvline(bars.mark, color=MUTED, linestyle="--", linewidth=1.1)
    for i, (label, value, text) in enumerate(bars.rows):
        axes.barh(-i, value, height=0.36, color=SERIES[0])
        axes.text(0, -i + 0.25, label[:MAX_LABEL], va="bottom", fontsize=9.5)
        axes.text(value + edge * 0.012, -i, text, va="center", fontsize=9.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, edge)
    axes.set_ylim(-len(bars.rows) + 0.6, 0.75)
    axes.set_xlabel(bars.x_label)


_COLOUR = re.compile("|".join(VARIABLES))
_FONT = re.compile(r"(font(?:-family)?:)([^;]*)")


def accessible(svg: str, chart: Chart) -> str:
    """matplotlib's SVG made fit for a page: scalable, named, described, in the page's colours."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    for child in list(root):
        if child.tag == f"{{{SVG}}}metadata":
            root.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if target := element.attrib.pop(f"{{{XLINK}}}href", None):
            element.set("href", target)  # SVG 2 knows the plain name
        if "style" in element.attrib:
            element.set("style", page_style(element.attrib["style"]))
    root.set("role", "img")
    root.set("aria-labelledby", f"{chart.key}-title {chart.key}-desc")
    for tag, text in (("desc", chart.summary), ("title", chart.title)):
        label = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{chart.key}-{tag}"})
        label.text = text
        root.insert(0, label)
    return ElementTree.tostring(root, encoding="unicode")


def page_style(text: str) -> str:
    """An element's style with the page's colours and font."""
    text = _COLOUR.sub(lambda m: f"var({VARIABLES[m[0]]})", text)

    def font(match: re.Match[str]) -> str:
        if match[1] == "font:":
            size = re.search(r"[\d.]+px", match[2])
            return f"font-size: {size[0]}" if size else ""
        return "font-family: inherit"

    return _FONT.sub(font, text)
