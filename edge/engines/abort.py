"""Honour a stop within 50 ms while native code runs: a watcher thread, and prefill in steps."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable

#: How often the watcher asks while native calls are long; and while they are so short that asking
#: between them is enough. Waking a thread costs a small model's token a few per cent.
_POLL_S, _IDLE_POLL_S = 0.010, 0.040
#: What one node of a graph may take, so that poll + node stay well below 50 ms.
_NODE_BUDGET_S = 0.020
_FIRST_CHUNK = 8
#: Tokens below which a step loses speed (measured, x86-64 AVX-512, 0.5B): fused attention takes
#: tiles of 64, and half as long again and more for less; without it 32 are as quick as 512.
TILE, UNFUSED_TILE = 64, 32
#: A step that threads share takes no longer than this, where its tile allows: only between steps
#: are there more or fewer of them, and what a stuck one has computed is lost.
_SHARED_STEP_S = 0.25
#: A step that reads a prompt beside other answers takes about this: so long they get no token.
_MIXED_STEP_S = 0.08


class StopWatcher:
    """Polls `stop` on a thread of its own while the engine is inside native code, and calls
    `on_stop` once, after `has_fired` is set. What `stop` raises is kept in `error`, and stops too.
    `on_look` is called whenever it looks.
    """

    def __init__(
        self,
        stop: Callable[[], bool] | None,
        on_stop: Callable[[], None],
        on_look: Callable[[], None] | None = None,
    ) -> None:
        self._stop, self._on_stop, self._on_look = stop, on_stop, on_look
        self.has_fired = False
        self._done = threading.Event()
        self._poll_s = _POLL_S
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def __enter__(self) -> StopWatcher:
        if self._stop is not None:
            self._thread = threading.Thread(target=self._watch, name="edge-stop", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def active(self) -> bool:
        """Whether a stop can be requested."""
        return self._stop is not None

    def stopped(self) -> bool:
        """Ask now, on the caller's thread: between tokens a stop takes effect at once."""
        if self.error is not None:
            raise self.error
        return self._stop is not None and self._stop()

    def expect(self, call_s: float) -> None:
        """Say how long the next native call will take: rarely woken, the watcher is cheaper."""
        self._poll_s = _POLL_S if call_s > _POLL_S else _IDLE_POLL_S

    def _watch(self) -> None:
        assert self._stop is not None
        try:
            while not self._done.wait(self._poll_s):
                if self._stop():
                    break
                if self._on_look is not None:
                    self._on_look()
            else:
                return
        except BaseException as error:
            self.error = error
        self.has_fired = True
        self._on_stop()


class ChunkSizer:
    """Tokens per prefill step, from the speed measured so far.

    A running graph looks at the abort flag between nodes: a step may take `n_nodes` budgets if
    its widest node takes 1/`n_nodes` of it (1 where nodes cannot be interrupted). Sizes are round:
    kernels work in tiles, and noise in the clock rarely changes how a prompt is cut. `shared`:
    several threads compute; `tile`: fewer tokens than this lose speed.
    """

    def __init__(
        self,
        largest: int,
        n_nodes: int,
        fixed: int | None = None,
        *,
        shared: bool = False,
        tile: int = TILE,
    ) -> None:
        self._largest, self._shared, self._tile = largest, shared, tile
        self._step_budget_s = _NODE_BUDGET_S * n_nodes
        self._fixed = fixed
        self._s_per_token: float | None = None

    @property
    def largest(self) -> int:
        """Most tokens that a step may take."""
        return self._largest if self._fixed is None else min(self._fixed, self._largest)

    def next_size(self, *, interruptible: bool, n_beside: int = 0) -> int:
        """Tokens of the next step; all there is room for if no stop can come. With `n_beside`
        tokens of others in the step these are left room for, and wait no longer than they may.
        """
        if self._fixed is not None:
            return min(self._fixed, self._largest - n_beside)
        if n_beside:
            return self._size_beside(n_beside)
        if not interruptible:
            return self._largest
        if self._s_per_token is None:
            return min(_FIRST_CHUNK, self._largest)
        fits = int(self._step_budget_s / self._s_per_token)
        if self._shared:
            fits = min(fits, max(self._tile, int(_SHARED_STEP_S / self._s_per_token)))
        if fits >= self._largest:
            return self._largest
        if fits >= self._tile:
            return fits - fits % self._tile
        return 1 << max(0, fits.bit_length() - 1)

    def _size_beside(self, n_others: int) -> int:
        s_per_token = self._s_per_token
        fits = _FIRST_CHUNK if s_per_token is None else int(_MIXED_STEP_S / s_per_token) - n_others
        if fits > self._tile:
            fits -= fits % self._tile
        return max(1, min(fits, self._largest - n_others))

    def measured(self, n_tokens: int, seconds: float) -> None:
        """Take in how long a step of `n_tokens` took."""
        # A step of a few tokens is bound by memory and says little about a long one: it only
        # counts while nothing better is known, or when it is the faster of the two.
        now = seconds / n_tokens
        small = n_tokens < _FIRST_CHUNK
        if self._s_per_token is None or not small:
            self._s_per_token = now
        else:
            self._s_per_token = min(self._s_per_token, now)


class NativeFlag:
    """A flag that a running graph reads without entering Python, whose lock it would take some
    hundred times per token. C's `strlen` fits `bool (*)(void*)`: over a two-byte buffer it returns
    0 (go on) or 1 (abort). `function` and `address` are the callback and its argument.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
        self.function = libc.strlen
        self._buffer = ctypes.create_string_buffer(2)
        self.address = ctypes.addressof(self._buffer)

    def set(self) -> None:
        self._buffer[0] = b"\x01"

    def clear(self) -> None:
        self._buffer[0] = b"\x00"

    def is_set(self) -> bool:
        return self._buffer[0] != b"\x00"
