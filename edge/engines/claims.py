"""Who may use what an engine computes with: the newest stream, until the engine is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from edge.errors import EngineError

T = TypeVar("T")


class Claims(Generic[T]):
    """A context or decoder, the lock around native calls on it, and whose turn it is. `lock` must
    be held while what `open` and `of` return is used. `interrupt` ends the step in progress and
    those after it, from any thread; `allow` takes that back; `release` frees everything, at the
    latest when neither the engine nor a stream of it is left.
    """

    def __init__(
        self,
        held: T,
        *,
        interrupt: Callable[[], None],
        allow: Callable[[], None],
        release: Callable[[], None],
    ) -> None:
        self.lock = threading.Lock()
        self.interrupt = interrupt
        self.is_closing = False
        self._held: T | None = held
        self._allow, self._release = allow, release
        self._newest = 0

    @property
    def held(self) -> T | None:
        """None when the engine is closed."""
        return self._held

    def open(self) -> T:
        """What is held. Raises EngineError when the engine is closed."""
        if self._held is None:
            raise EngineError("the engine is closed")
        return self._held

    def begin(self) -> int:
        """Claim it for a new stream, whose number is returned; an older, unfinished one loses it.
        Raises EngineError when the engine is closed.
        """
        with self.lock:
            self.open()
            self._newest += 1
            self._allow()
            return self._newest

    def of(self, stream: int) -> T:
        """What is held, if this stream still owns it. Raises EngineError if it does not."""
        if self._held is None:
            raise EngineError("the engine was closed before this stream ended")
        if stream != self._newest:
            raise EngineError("another stream was started on this engine before this one ended")
        return self._held

    def close(self) -> None:
        """Interrupt what runs, and free everything. Calling it twice is fine."""
        self.is_closing = True
        self.interrupt()
        with self.lock:
            if self._held is not None:
                self._held = None
                self._release()

    def __del__(self) -> None:
        if hasattr(self, "_newest"):
            self.close()
