"""Compute the width of bounds: quantiles of the errors with the figure's group left out.

Split conformal prediction: of n errors, the k-th smallest with k = ⌈(n + 1) level⌉ covers a further
figure with probability `level`, for any distribution of the errors, as long as the further figure
is like the n. Source: Angelopoulos and Bates, arXiv 2107.07511, section 1. Rows of one board are
more alike than rows of two, so that errors are taken with their whole group left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from boardfit.device_profiles.cost.engine_classes import LLAMA_CPP
from lab.speed.validation import Case

#: Share of figures that bounds are made to cover, somewhat more than the 90 % that are promised.
LEVEL = 0.92
# Where n is too small for the quantile: the largest error and a quarter more.
_WIDENING = 1.25

Pool = tuple[str, bool, str]


def pool(case: Case) -> Pool:
    """(family of engine classes, whether the model is unusual, metric): what shares one bound. Only
    llama.cpp has enough rows of unusual models to hold them apart.
    """
    apart = case.engine.family == LLAMA_CPP.family and case.unusual
    return case.engine.family, apart, case.metric


def needed_bound(case: Case) -> float:
    """The smallest bound that would have covered the figure."""
    return max(case.predicted / case.measured, case.measured / case.predicted) - 1


def conformal_bound(errors: Iterable[float], level: float = LEVEL) -> float | None:
    """The bound that covers a further error with probability `level`; None without any error."""
    ordered = sorted(errors)
    if not ordered:
        return None
    k = math.ceil((len(ordered) + 1) * level)
    return ordered[k - 1] if k <= len(ordered) else ordered[-1] * _WIDENING


def fitted_bounds(variants: Iterable[Sequence[Case]]) -> dict[Pool, tuple[float, int]]:
    """Pool → (the widest bound of all variants of leaving out, figures it rests on)."""
    out: dict[Pool, tuple[float, int]] = {}
    for cases in variants:
        errors: dict[Pool, list[float]] = {}
        for case in cases:
            errors.setdefault(pool(case), []).append(needed_bound(case))
        for name, found in errors.items():
            bound = conformal_bound(found)
            if bound is not None and bound > out.get(name, (0.0, 0))[0]:
                out[name] = (bound, len(found))
    return out


def refitted_coverage(cases: Sequence[Case], group: Callable[[Case], str]) -> float | None:
    """Share of left-out figures that bounds cover which were made without their group."""
    covered = judged = 0
    for name in {group(case) for case in cases}:
        bounds = fitted_bounds([[case for case in cases if group(case) != name]])
        for case in cases:
            if group(case) == name and pool(case) in bounds:
                judged += 1
                covered += needed_bound(case) <= bounds[pool(case)][0]
    return covered / judged if judged else None
