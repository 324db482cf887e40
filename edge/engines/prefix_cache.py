"""The tokens whose KV an engine holds, and how much of them a new prompt can reuse."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

#: Writes a state into a mapping; returns bytes written.
Fill = Callable[[mmap.mmap], int]


class PrefixCache(ABC):
    """A cache that can be cut to a prefix. `cached` are the tokens that it holds, in order."""

    cached: list[int]

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Cut the cache to its common prefix with `prompt`; returns how many tokens stay.

        The prompt's last token is never kept: its logits are needed, so it is evaluated again.
        """
        self.truncate(self.reusable(prompt))
        return len(self.cached)

    def reusable(self, prompt: Sequence[int]) -> int:
        """What `keep_prefix` would return, with nothing changed."""
        keep = 0
        for have, want in zip(self.cached, prompt[:-1], strict=False):
            if have != want:
                break
            keep += 1
        return keep if self.can_cut(keep) else 0

    @abstractmethod
    def can_cut(self, keep: int) -> bool:
        """Whether the memory can be cut to its first `keep` tokens."""

    @abstractmethod
    def truncate(self, keep: int) -> None:
        """Keep the first `keep` cached tokens, or none where the memory cannot be cut there."""


class SavableCache(PrefixCache):
    """A cache whose state can be written and read."""

    @abstractmethod
    def saving(self, keep: int, folder: Path) -> AbstractContextManager[tuple[int, Fill]]:
        """Bytes of the state of the first `keep` tokens, and what writes them, valid within the
        block. `folder` takes temporary files. Raises UnsupportedModelError unless `can_cut(keep)`.
        """

    @abstractmethod
    def load(self, state: mmap.mmap, tokens: Sequence[int], path: Path) -> None:
        """Replace the cache by a checked state of `tokens`. Raises EdgeError, and leaves an empty
        cache, if it does not fit; `path` stands for it in messages.
        """
