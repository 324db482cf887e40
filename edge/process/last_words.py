"""Explain in words how native code died, from its signal and last output."""

import os
import signal

from boardfit.edge.errors import DoesNotFitError, EdgeError, EngineError

#: Signals that native code dies of, and what a user can do then.
_REBUILD = (
    "build the engine for this CPU: scripts/build_engine in a checkout, or on a board: "
    "edge build MODEL --device BOARD --with-engine"
)
_CHECK = "check the file: edge bundle verify BUNDLE; if it is whole, this is a bug of the engine"
LESS_MEMORY = "choose a smaller context (--ctx) or a smaller recipe, or end other programs"
DEATHS = {
    "SIGILL": ("an illegal instruction", _REBUILD),
    "SIGSEGV": ("a segmentation fault", _CHECK),
    "SIGBUS": ("a bus error: a file that it reads was cut off, or its disk failed", _CHECK),
    "SIGFPE": ("an arithmetic exception", _CHECK),
    "SIGABRT": ("an abort", _CHECK),
}

MAX_BYTES = 2000
_pipe: int | None = None


def set_pipe(descriptor: int) -> None:
    global _pipe
    _pipe = descriptor


def leave_words(text: str) -> bool:
    """Write for the parent. Returns False where there is none."""
    if _pipe is None:
        return False
    os.write(_pipe, text.encode("utf-8", "replace")[:MAX_BYTES])
    return True


def name_signal(code: int) -> str | None:
    """The signal that ended a program, from its exit code as Python or a shell gives it."""
    number = -code if code < 0 else code - 128
    return next((known.name for known in signal.Signals if known.value == number), None)


def explain_death(who: str, code: int) -> EdgeError | None:
    """The error for a child process whose native code died; None for another end."""
    name = name_signal(code)
    if name == "SIGKILL":
        return DoesNotFitError(f"{who} was killed, most likely for lack of memory",
                               next_step=LESS_MEMORY)  # fmt: skip
    if name not in DEATHS:
        return None
    what, next_step = DEATHS[name]
    return EngineError(f"{who}: {what} in native code ended it ({name})", next_step=next_step)
