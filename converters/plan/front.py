"""The Pareto front: combinations that no other one beats in every respect."""

from __future__ import annotations

from collections.abc import Sequence

from boardfit.converters.plan.planner import Candidate


def qualities(candidate: Candidate) -> tuple[float, ...]:
    """What counts, each the smaller the better: perplexity added, seconds per decoded token,
    seconds per prompt token, peak bytes, minus the context. Unknown speeds are the worst.
    """
    speed = candidate.speed
    return (
        candidate.weights.perplexity_added,
        1 / speed.decode_tps if speed.decode_tps else float("inf"),
        1 / speed.prefill_tps if speed.prefill_tps else float("inf"),
        float(candidate.peak_bytes),
        -float(candidate.n_ctx),
    )


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is at least as good in everything, and better in something."""
    a, b = qualities(one), qualities(other)
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def front(rows: Sequence[Candidate]) -> list[Candidate]:
    """The rows that no other row dominates, in their order."""
    return [row for row in rows if not any(dominates(other, row) for other in rows)]


def dominated_by(row: Candidate, rows: Sequence[Candidate]) -> Candidate | None:
    """The first row that beats this one; None for rows of the front."""
    return next((other for other in rows if dominates(other, row)), None)
