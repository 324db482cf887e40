"""Tags that a known number was multiplied with.

The converter folds `x @ W * c` into weights `W * c`, so that a tag t arrives as t · c: Granite's
multipliers, the attention scale of layers without rotary embedding. Every such c is a number of the
configuration, and tags are close together. So t and c can be separated again.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from boardfit.edge.errors import UnsupportedModelError

# Of a float32 product of two rounded numbers.
_TOLERANCE = 3e-7


def candidate_factors(config: Mapping[str, Any]) -> list[float]:
    """Numbers that a model of this configuration may multiply a layer's output with."""
    numbers = {
        float(v) for v in config.values() if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    n_head = config.get("num_attention_heads") or 1
    head_dim = config.get("head_dim") or config.get("hidden_size", n_head) // n_head
    numbers |= {float(head_dim), float(config.get("query_pre_attn_scalar") or head_dim)}
    found = {1.0}
    for number in numbers:
        if math.isfinite(number) and number > 0:
            found |= {number, 1 / number, math.sqrt(number), 1 / math.sqrt(number)}
    return sorted(found)


class Factors:
    """Takes products of tags and factors apart."""

    def __init__(self, tags: Iterable[int], factors: Iterable[float]) -> None:
        self._tags = sorted(tags)
        self._factors = [float(np.float32(f)) for f in factors]

    def split(self, value: float) -> tuple[int, float] | None:
        """(tag, factor) of a constant; None for one that is no product of the two.

        Raises UnsupportedModelError where two products are equally near.
        """
        if not self._tags or not math.isfinite(value) or value <= 0:
            return None
        found = set()
        for factor in self._factors:
            tag = round(value / factor)
            if self._tags[0] <= tag <= self._tags[-1]:
                error = abs(tag * factor / value - 1)
                if error <= _TOLERANCE:
                    found.add((tag, factor))
        if len({tag for tag, _ in found}) > 1:
            raise UnsupportedModelError(
                f"a weight's factor is ambiguous: {sorted(found)}",
                next_step="build a GGUF: --format gguf",
            )
        return min(found, default=None)
