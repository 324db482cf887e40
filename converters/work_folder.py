"""A folder in which one process at a time makes something, beside where the result will lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import UsageError


@contextmanager
def alone_in(work: Path, what: str, next_step: str) -> Iterator[None]:
    """Make `work` if it is not there, and hold its lock. Raises UsageError that another `what`
    (build, pull) is writing it, and says `next_step`.
    """
    work.mkdir(exist_ok=True)
    with (work / ".lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # Windows: two at once are the user's own doing
        except OSError:
            raise UsageError(f"another {what} is writing {work}", next_step=next_step) from None
        yield
