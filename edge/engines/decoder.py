"""What evaluates tokens, as `StepEngine` and its generation see it: the interpreters' decoder and
onnxruntime-genai's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from boardfit.edge.engines.prefix_cache import PrefixCache


class Runner(Protocol):
    """What runs a decoder's steps. `can_cancel`: a step in progress can be ended from outside."""

    @property
    def can_cancel(self) -> bool: ...
    def cancel(self) -> None:
        """End the step in progress and those after it, where `can_cancel`; from any thread."""

    def allow(self) -> None:
        """Take `cancel` back."""

    def close(self) -> None:
        """Free everything."""


class Decoder(PrefixCache):
    """Tokens in, logits out. Knows nothing of threads, text or sampling."""

    graph: Runner
    n_ctx: int
    n_logits: int

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, ...]:
        """Lengths of prefill steps."""

    @property
    @abstractmethod
    def logits(self) -> Any:
        """float32 [n_logits] after the last token, a view that the next step overwrites."""

    @abstractmethod
    def prefill(self, tokens: Sequence[int], *, budget_s: float | None) -> bool:
        """Evaluate a first part of `tokens` behind the cached ones, as much as one step takes,
        within `budget_s` where there is a choice. False if it was cancelled, and then nothing of
        it is cached.
        """

    @abstractmethod
    def decode(self, token: int) -> bool:
        """Evaluate one token; `logits` are those after it. False if cancelled."""
