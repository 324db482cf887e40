"""Where the positions of a KV tensor lie."""

from __future__ import annotations

from typing import Any


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
