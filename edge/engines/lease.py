"""Give streams the slots of an engine's context, the newest first, until the engine is closed."""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from boardfit.edge.engines.prefix_cache import PrefixCache, common
from boardfit.edge.errors import EngineError

T = TypeVar("T", bound=PrefixCache)


class Lease(Generic[T]):
    """Hold the slots of a context, or a decoder, the lock for native calls on them, and which
    stream owns which slot. `interrupt` ends the current step and the following ones, until `allow`.
    `release` frees everything, at the latest when the engine and all its streams are deleted.
    """

    def __init__(
        self,
        slots: Sequence[T],
        *,
        interrupt: Callable[[], None],
        allow: Callable[[], None],
        release: Callable[[], None],
    ) -> None:
        self.lock = threading.Lock()
        self.is_closing = self._is_interrupted = False
        self._interrupt = interrupt
        self._allow, self._release = allow, release
        self._newest = 0
        #: The slots with the numbers of their streams (0: none), the one used longest ago first.
        self._owned: list[tuple[T, int]] = [(slot, 0) for slot in slots]

    @property
    def slots(self) -> list[T]:
        """Every slot; none when the engine is closed."""
        return [slot for slot, _ in self._owned]

    @property
    def held(self) -> T | None:
        """The slot used last; None when the engine is closed."""
        return self._owned[-1][0] if self._owned else None

    def get(self) -> T:
        """Return the slot used last. Raise EngineError when the engine is closed."""
        if not self._owned:
            raise EngineError("the engine is closed")
        return self._owned[-1][0]

    def begin(self, prompt: Sequence[int] = ()) -> int:
        """Give a slot to a new stream and return the stream's number: the free slot that shares
        most with `prompt`, else that of the stream which has not been asked on for longest.
        """
        with self.lock:
            self.get()
            self._newest += 1
            free = [slot for slot, owner in self._owned if not owner] or [self._owned[0][0]]
            self._give(max(free, key=lambda slot: common(slot.cached, prompt)), self._newest)
            return self._newest

    def get_for(self, stream: int) -> T | None:
        """Return the slot of a stream; None if another one took it."""
        if not self._owned:
            raise EngineError("the engine was closed before this stream ended")
        return next((slot for slot, owner in self._owned if owner == stream), None)

    def touch(self, stream: int) -> T | None:
        """As `get_for`, for a stream that is asked on: its slot is the last that others take."""
        if (slot := self.get_for(stream)) is not None:
            self._give(slot, stream)
        return slot

    def end(self, stream: int) -> None:
        """Free the stream's slot for others. It holds what it held."""
        with self.lock:
            for i, (slot, owner) in enumerate(self._owned):
                if owner == stream:
                    slot.is_busy, self._owned[i] = False, (slot, 0)

    def _give(self, slot: T, stream: int) -> None:
        slot.is_busy = True
        rest = [each for each in self._owned if each[0] is not slot]
        self._owned = [*rest, (slot, stream)]

    def interrupt(self) -> None:
        """End the step that runs, and those after it."""
        self._interrupt()
        self._is_interrupted = True

    def was_cut(self) -> None:
        """A step ended early: `allow` is to take back what stopped it."""
        self._is_interrupted = True

    def allow(self) -> None:
        """Let steps run again after `interrupt`, unless the engine is being closed."""
        if self._is_interrupted and not self.is_closing:
            self._is_interrupted = False
            self._allow()
            if self.is_closing:
                self._interrupt()

    def close(self) -> None:
        """Interrupt the running step and free everything. A second call does nothing."""
        self.is_closing = True
        self.interrupt()
        with self.lock:
            if self._owned:
                self._owned = []
                self._release()
                give_back_memory()

    def __del__(self) -> None:
        if hasattr(self, "_newest"):
            self.close()


def give_back_memory() -> None:
    """Return freed heap to the system: glibc keeps freed blocks of up to 32 MiB for later."""
    if os.name == "posix" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
