"""Where an engine puts whole distributions: into one array, or into a caller's hands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LogitRows:
    """Takes `n` rows of logits, block by block. With `visit` none is kept, because the rows of a
    long text can take more memory than a board has.
    """

    def __init__(
        self,
        n: int,
        n_vocab: int,
        progress: Callable[[int, int], None] | None,
        visit: Callable[[int, Any], None] | None,
    ) -> None:
        import numpy as np

        self._n, self._done = n, 0
        self._progress, self._visit = progress, visit
        self.rows = None if visit else np.empty((n, n_vocab), np.float32)

    def add(self, block: Any) -> None:
        """Take the next rows: float32 [some, n_vocab]."""
        first, self._done = self._done, self._done + len(block)
        if self._visit is not None:
            self._visit(first, block)
        else:
            self.rows[first : self._done] = block  # type: ignore[index]
        if self._progress is not None:
            self._progress(self._done, self._n)
