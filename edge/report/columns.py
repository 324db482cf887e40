"""The columns in which runs of one kind stand side by side: a figure, its text, what is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from boardfit.edge.report.deadline_rows import find_summary, share_text
from boardfit.edge.report.figures import Run, best_decode, longest_prefill, median, peak
from boardfit.edge.report.network_rows import latency_text
from boardfit.edge.units import MIB, format_bytes, format_seconds


class Column(NamedTuple):
    """`praise` is what a headline states of the best run. `scale` is what a bar's unit is worth.
    None draws no bars.
    """

    heading: str
    find: Callable[[Run], float | None]
    text: Callable[[float], str]
    more_is_better: bool
    praise: str = ""
    scale: float | None = None


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


def find_latency(run: Run) -> float | None:
    return median(run.head, "latency_s")


def find_share_in_time(run: Run) -> float | None:
    return _number(find_summary(run.head).get("hit_rate"))


def find_slow_answer(run: Run) -> float | None:
    return _percentile(run, "total_s")


def find_slow_first_token(run: Run) -> float | None:
    return _percentile(run, "first_s")


def _percentile(run: Run, name: str) -> float | None:
    found = find_summary(run.head).get(name)
    return _number(found.get("p99")) if isinstance(found, dict) else None


def _number(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _bytes_text(value: float) -> str:
    return format_bytes(int(value))


MEMORY = Column(
    "anonymous memory", find_memory, _bytes_text, False, "needs the least memory", float(MIB)
)
LANGUAGE_COLUMNS = (
    Column("decode, tokens/s", find_decode, "{:,.1f}".format, True, "decodes fastest", 1.0),
    Column("prefill, tokens/s", find_prefill, "{:,.0f}".format, True, scale=1.0),
    Column("time to first token", find_ttft, format_seconds, False),
    MEMORY,
    Column("load", find_load, format_seconds, False),
)
DEADLINE_COLUMNS = (
    Column("answered in time", find_share_in_time, share_text, True, "answers most in time"),
    Column("whole answer, p99", find_slow_answer, format_seconds, False),
    Column("first token, p99", find_slow_first_token, format_seconds, False),
    MEMORY,
)
NETWORK_COLUMNS = (
    Column("latency, median", find_latency, latency_text, False, "is fastest"),
    MEMORY,
    Column("load", find_load, format_seconds, False),
)
