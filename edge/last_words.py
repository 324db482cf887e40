"""What a native library says before it aborts, handed to the supervisor that waits."""

from __future__ import annotations

import os

MAX_BYTES = 2000
_pipe: int | None = None


def set_pipe(descriptor: int) -> None:
    """Keep the descriptor that the waiting parent reads."""
    global _pipe
    _pipe = descriptor


def leave_words(text: str) -> bool:
    """Write for the parent. Returns False where there is none."""
    if _pipe is None:
        return False
    os.write(_pipe, text.encode("utf-8", "replace")[:MAX_BYTES])
    return True
