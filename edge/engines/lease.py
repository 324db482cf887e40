"""Give the newest stream the only access to an engine's context, until the engine is closed."""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from boardfit.edge.errors import EngineError

T = TypeVar("T")


class Lease(Generic[T]):
    """Hold a context or decoder, the lock for native calls on it, and the number of the stream that
    owns it. `interrupt` ends the current step and the following ones, until `allow`. `release`
    frees everything, at the latest when the engine and all its streams are deleted.
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
        """The held object; None when the engine is closed."""
        return self._held

    def get(self) -> T:
        """Return the held object. Raise EngineError when the engine is closed."""
        if self._held is None:
            raise EngineError("the engine is closed")
        return self._held

    def begin(self) -> int:
        """Give the held object to a new stream and return its number; an older stream loses it."""
        with self.lock:
            self.get()
            self._newest += 1
            self._allow()
            return self._newest

    def get_for(self, stream: int) -> T:
        """Return the held object for the stream that owns it. Raise EngineError for any other."""
        if self._held is None:
            raise EngineError("the engine was closed before this stream ended")
        if stream != self._newest:
            raise EngineError("another stream was started on this engine before this one ended")
        return self._held

    def close(self) -> None:
        """Interrupt the running step and free everything. A second call does nothing."""
        self.is_closing = True
        self.interrupt()
        with self.lock:
            if self._held is not None:
                self._held = None
                self._release()
                give_back_memory()

    def __del__(self) -> None:
        if hasattr(self, "_newest"):
            self.close()


def give_back_memory() -> None:
    """Return freed heap to the system: glibc keeps freed blocks of up to 32 MiB for later."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
