"""Find the KV tensors of a signature, and the axis of their positions.

The KV cache of attention has a place per position. Other memory (a convolution's last inputs, in
LFM2) has none: it is an input and an output of one name, and is replaced as a whole by each step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_KV = re.compile(r"^kv_cache_([kv])_(\d+)$")


def is_kv(name: str) -> bool:
    """Whether a tensor of this name is a KV cache."""
    return _KV.match(name) is not None


def state_names(inputs: Iterable[str], outputs: Iterable[str]) -> list[str]:
    """Names of memory without positions, sorted."""
    return sorted(name for name in set(inputs) & set(outputs) if not is_kv(name))


def position_axis(name: str, view: Any, n_ctx: int) -> int:
    """Which axis of a KV tensor counts positions: the one as long as the context; where both are,
    the layout of the exporter decides (values lie transposed).
    """
    if view.shape[-1] != n_ctx:
        return -2
    if view.shape[-2] != n_ctx:
        return -1
    return -2 if name.startswith("kv_cache_k_") else -1


def position_index(axis: int, first: int, last: int) -> tuple[Any, ...]:
    """An index of the positions from `first` to before `last`."""
    if axis == -1:
        return (..., slice(first, last))
    return (..., slice(first, last), slice(None))
