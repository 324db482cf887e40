"""The token events of a stored request as their times alone.

A benchmark measures memory in its own process. Ten minutes of decode on a fast machine are a
million events, 160 bytes each as objects: they would show as the model's memory. A time takes 8.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from boardfit.edge.types import TokenEvent


class TokenTimes(Sequence[TokenEvent]):
    """Events without text or id, made when they are asked for; only those that carried a token."""

    def __init__(self, events: Iterable[TokenEvent]) -> None:
        self._t_ns = array("q", (event.t_ns for event in events if event.token_id is not None))

    def __len__(self) -> int:
        return len(self._t_ns)

    @overload
    def __getitem__(self, index: int) -> TokenEvent: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenEvent]: ...
    def __getitem__(self, index: int | slice) -> TokenEvent | Sequence[TokenEvent]:
        if isinstance(index, slice):
            return [TokenEvent(0, "", t_ns) for t_ns in self._t_ns[index]]
        return TokenEvent(0, "", self._t_ns[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenTimes) and self._t_ns == other._t_ns

    def __hash__(self) -> int:
        return hash(self._t_ns.tobytes())
