"""The common parts of every engine's generation loop."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from boardfit.edge.engines.abort import StopWatcher
from boardfit.edge.engines.claims import Claims
from boardfit.edge.engines.text_stream import TextStream
from boardfit.edge.types import FinishReason, GenerationConfig, StreamStart, TokenEvent

T = TypeVar("T")


class Generation(ABC, Generic[T]):
    """What an engine does with what it holds. `last_start` is of the newest stream, None before its
    first token.
    """

    def __init__(self, claims: Claims[T], n_ctx: int) -> None:
        self._claims, self._n_ctx = claims, n_ctx
        self.last_start: StreamStart | None = None

    def begin(self) -> int:
        """Claim what is held; returns the stream's number."""
        stream_id = self._claims.begin()
        self.last_start = None
        return stream_id

    def feed(self, prompt: list[int], stop: Callable[[], bool] | None) -> bool:
        """Evaluate what of a checked prompt is not cached yet, and sample nothing. False if `stop`
        ended it.
        """
        stream_id = self.begin()
        with StopWatcher(stop, self._claims.interrupt) as watcher:
            return self._prefill(stream_id, prompt, watcher)

    @abstractmethod
    def _prefill(self, stream_id: int, prompt: list[int], watcher: StopWatcher) -> bool:
        """Evaluate what of `prompt` is not cached yet, in steps. False if stopped on the way."""

    def _finish(
        self, text: TextStream, n_out: int, n_cached: int, config: GenerationConfig
    ) -> FinishReason | None:
        """Why the answer ends with its `n_out`th token; None if it goes on."""
        if text.stopped:
            return "stop"
        if n_out == config.max_tokens:
            return "length"
        return "context" if n_cached >= self._n_ctx else None


def aborted(text: TextStream) -> TokenEvent:
    """The last event of a stream that was stopped."""
    return TokenEvent(None, text.flush(), time.monotonic_ns(), "aborted")


def raise_stop_error(watcher: StopWatcher) -> None:
    """Raise the error that the caller's `stop` raised, if it raised one."""
    if watcher.error is not None:
        raise watcher.error
