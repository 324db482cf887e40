"""What evaluates tokens, as `StepEngine` and its generation see it: the interpreters' decoder and
onnxruntime-genai's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


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


class Decoder(Protocol):
    """Tokens in, logits out. `cached` are the tokens that the KV cache holds, in order; `logits` is
    float32 [n_logits] after the last one, a view that the next step overwrites. See
    `signature_decoder.SignatureDecoder` for the methods.
    """

    cached: list[int]

    @property
    def graph(self) -> Runner: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_logits(self) -> int: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def logits(self) -> Any: ...
    def prefill(self, tokens: Sequence[int], *, budget_s: float | None) -> bool: ...
    def decode(self, token: int) -> bool: ...
    def keep_prefix(self, prompt: Sequence[int]) -> int: ...
    def reusable(self, prompt: Sequence[int]) -> int: ...
    def truncate(self, keep: int) -> None: ...


@runtime_checkable
class SavableDecoder(Decoder, Protocol):
    """A decoder whose memory can be read and written; `kv` are its KV tensors by name."""

    @property
    def kv(self) -> dict[str, Any]: ...
    def kv_slices(self, n_tokens: int) -> list[Any]: ...
    def kv_replaced(self) -> None: ...
