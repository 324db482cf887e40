"""Count the outcomes of a workload's requests, whose rows `docs/result-schema.md` describes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from boardfit.edge.bench.metrics import quantile

Row = Mapping[str, Any]

# Two-sided 95 % of the normal distribution.
_Z = 1.959963984540054
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def wilson(n_met: int, n: int) -> tuple[float, float] | None:
    """95 % interval of a share (E. B. Wilson 1927), right near 1 too; None without trials."""
    if n <= 0:
        return None
    share = n_met / n
    middle = share + _Z**2 / (2 * n)
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, shares and percentiles; null where there is nothing to count. Times in seconds."""
    accepted = [row for row in rows if row["accepted"]]
    asked_again = [row for row in rows if not row["accepted"] and "rightly" in row]
    n_rightly = sum(bool(row["rightly"]) for row in asked_again)
    answered = [row for row in accepted if row["n_out"]]
    shortened = [row for row in answered if row["shortened"]]
    n_met = sum(bool(row["met"]) for row in accepted)
    interval = wilson(n_met, len(accepted))
    whole = sum(bool(row["whole_sentence"]) for row in shortened)
    kinds = Counter(kind for row in accepted for kind in row["adjustments"])
    return {
        "n_requests": len(rows),
        "n_refused": len(rows) - len(accepted),
        # Records of earlier versions did not ask refused requests again.
        "refused_rightly_share": _share(n_rightly, len(asked_again)),
        "n_accepted": len(accepted),
        "n_met": n_met,
        "hit_rate": _share(n_met, len(accepted)),
        "hit_rate_low": interval[0] if interval else None,
        "hit_rate_high": interval[1] if interval else None,
        "n_shortened": len(shortened),
        "whole_sentence_share": _share(whole, len(shortened)),
        "given_share": given_share(answered),
        "worst_overrun_s": _worst(accepted, "total_s", "within_s"),
        "worst_overrun_share": _worst(accepted, "total_s", "within_s", relative=True),
        "worst_first_overrun_s": _worst(accepted, "first_s", "first_within_s"),
        "first_s": _percentiles(accepted, "first_s"),
        "total_s": _percentiles(accepted, "total_s"),
        "adjustments": dict(sorted(kinds.items())),
    }


def by_task(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """A summary for each task, in the order of their first requests."""
    names = dict.fromkeys(str(row["task"]) for row in rows)
    return {name: summarize([row for row in rows if row["task"] == name]) for name in names}


def given_share(answered: Sequence[Row]) -> float | None:
    """Tokens given over tokens that the time would have allowed, over all answers. An answer that
    ended by itself has given all it had to; no answer could have been longer than was asked for.
    """
    given = possible = 0
    for row in answered:
        most = row["n_out"]
        if row["shortened"] and row["n_possible"] is not None:
            most = max(most, min(row["n_possible"], row["n_answer"]))
        given += row["n_out"]
        possible += most
    return given / possible if possible else None


def _share(n: int, of: int) -> float | None:
    return n / of if of else None


def _worst(rows: Sequence[Row], met: str, limit: str, *, relative: bool = False) -> float | None:
    """The largest overrun, 0 where every limit was kept; None without a limit or an answer."""
    over = [
        max(0.0, row[met] - row[limit]) / (row[limit] if relative else 1.0)
        for row in rows
        if row[met] is not None and row[limit] is not None
    ]
    return max(over, default=None)


def _percentiles(rows: Sequence[Row], name: str) -> dict[str, float] | None:
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return None
    found = {key: quantile(values, q) for key, q in _QUANTILES.items()}
    return {**found, "maximum": max(values)}
