"""`--fail-if 'decode<0.95x'`: a condition on a ratio, for CI."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from boardfit.edge.errors import InputError, UsageError
from boardfit.edge.report.compare import FIGURES, Ratio
from boardfit.edge.units import did_you_mean

_FORM = re.compile(r"^\s*([a-z]+)\s*(<|>)\s*(\d+(?:\.\d+)?)\s*x?\s*$")


@dataclass(frozen=True)
class Gate:
    """Fails when a figure's ratio is beyond `bound`, and the difference is seen: an interval that
    holds 1 is noise, not a regression. Without an interval the ratio alone decides.
    """

    figure: str
    less: bool
    bound: float

    @property
    def text(self) -> str:
        return f"{self.figure}{'<' if self.less else '>'}{self.bound:g}x"

    def is_missed(self, ratios: Sequence[Ratio]) -> bool:
        """Raises InputError when the figure was not measured on both sides: nothing was checked."""
        found = next((r for r in ratios if r.figure.name == self.figure), None)
        if found is None:
            raise InputError(
                f"{self.text} cannot be checked: {self.figure} is not in both runs",
                next_step="measure both with the same edge bench command",
            )
        beyond = found.value < self.bound if self.less else found.value > self.bound
        return beyond and found.is_significant is not False


def parse_gate(text: str) -> Gate:
    """Raises UsageError on anything but FIGURE<RATIOx or FIGURE>RATIOx."""
    match = _FORM.match(text)
    names = [figure.name for figure in FIGURES]
    if not match:
        raise UsageError(
            f"not a condition: {text!r}", next_step="write for example --fail-if 'decode<0.95x'"
        )
    if match[1] not in names:
        raise UsageError(
            f"there is no figure {match[1]!r}.{did_you_mean(match[1], names)}",
            next_step=f"figures: {', '.join(names)}",
        )
    return Gate(match[1], match[2] == "<", float(match[3]))
