"""The tokens whose KV an engine holds, and how much of them a new prompt can reuse."""

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

#: Writes a state into a mapping; returns bytes written.
Fill = Callable[[mmap.mmap], int]


def common(first: Sequence[object], second: Sequence[object]) -> int:
    """How many leading tokens, or characters, two sequences share."""
    first, second = list(first), list(second)
    low, high = 0, min(len(first), len(second))
    while low < high:  # slices compare at the speed of C
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class PrefixCache(ABC):
    """A cache that can be cut to a prefix. `cached` are the tokens that it holds, in order.
    `is_busy` while a stream computes with it.
    """

    cached: list[int]
    is_busy = False

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Cut the cache to its common prefix with `prompt`; returns how many tokens stay.

        The prompt's last token is never kept: its logits are needed, so it is evaluated again.
        """
        self.truncate(self.reusable(prompt))
        return len(self.cached)

    def reusable(self, prompt: Sequence[int]) -> int:
        """What `keep_prefix` would return, with nothing changed."""
        keep = common(self.cached, prompt[:-1])
        return keep if self.can_cut(keep) else 0

    @abstractmethod
    def can_cut(self, keep: int) -> bool:
        """Whether the memory can be cut to its first `keep` tokens."""

    @abstractmethod
    def truncate(self, keep: int) -> None:
        """Keep the first `keep` cached tokens, or none where the memory cannot be cut there."""

    def forget(self) -> None:
        """Keep nothing: not this prefix, and no other one."""
        self.truncate(0)


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
