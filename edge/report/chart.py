"""A chart as data: what is drawn, its content in words, and the same figures as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["line", "points", "steps"]
Rows = tuple[tuple[str, ...], ...]
Axis = tuple[float, ...]

# More points than this are not visible at a chart's width; see `thin`.
MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """Points of one colour. `low` and `high` bound each point, None where there is no interval."""

    name: str
    x: Axis
    y: Axis
    style: Style = "line"
    low: tuple[float | None, ...] | None = None
    high: tuple[float | None, ...] | None = None
    labels: tuple[str, ...] | None = None  # beside each point


@dataclass(frozen=True)
class LimitLine:
    """A line across the panel, drawn in scale where it is near the data, else named at the edge."""

    value: float
    label: str
    axis: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class Panel:
    """One pair of axes; panels of a chart share their x axis."""

    y_label: str
    series: tuple[Series, ...]
    limit: LimitLine | None = None
    y_from_zero: bool = True


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one per row, each with its label above and its value at its end."""

    x_label: str
    rows: tuple[tuple[str, float, str], ...]
    band: tuple[float, float] | None = None  # the range that was promised
    mark: float | None = None


@dataclass(frozen=True)
class Chart:
    """`summary` is the text alternative: one or two sentences that describe the picture."""

    key: str
    title: str
    summary: str
    x_label: str
    panels: tuple[Panel | Bars, ...]
    header: tuple[str, ...]
    rows: Rows
    note: str | None = None


@dataclass(frozen=True)
class Missing:
    """A chart that cannot be drawn, and why."""

    title: str
    reason: str


def sentence(parts: Iterable[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def thin(x: Sequence[float], y: Sequence[float], most: int = MAX_POINTS) -> tuple[Axis, Axis]:
    """At most `most` of the points: of each stretch its lowest and its highest."""
    if len(x) <= most:
        return tuple(x), tuple(y)
    stretch = -(-len(x) // max(1, most // 2))
    kept: list[int] = []
    for start in range(0, len(x), stretch):
        span = range(start, min(start + stretch, len(x)))
        kept += sorted({min(span, key=y.__getitem__), max(span, key=y.__getitem__)})
    return tuple(x[i] for i in kept), tuple(y[i] for i in kept)
