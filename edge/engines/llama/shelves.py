"""Beginnings of earlier prompts, kept beside the running sequences in one context of llama.cpp.

Each is a sequence of its own. Copying one is a mark on the cells it shares, so that a system prompt
is stored once, however many conversations begin with it. A recurrent layer keeps one state per
sequence, which is copied when the next token changes it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from boardfit.edge.engines.prefix_cache import common

#: Fewer tokens than this are computed again rather than kept.
MIN_KEPT = 16


class Shelves:
    """The kept sequences, and their tokens, the one used longest ago first.

    `has_past`: the memory can be cut anywhere, so that a longer beginning replaces its own start.
    """

    def __init__(self, lib: Any, memory: Any, seqs: range, *, has_past: bool) -> None:
        self._lib, self._memory, self._has_past = lib, memory, has_past
        self._free = list(reversed(seqs))
        self._kept: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def find(
        self,
        prompt: Sequence[int],
        running: Mapping[int, list[int]],
        can_cut: Callable[[int, int, int], bool],
    ) -> tuple[int, list[int]]:
        """The sequence, kept or of others that are `running`, that shares most leading tokens with
        `prompt`, and those that it can give. `can_cut(seq, held, keep)` is the memory's.
        """
        best = (-1, 0)
        for seq, tokens in (*self._kept.items(), *running.items()):
            n = common(tokens, prompt)
            if n > best[1] and can_cut(seq, len(tokens), n):
                best = seq, n
        return best[0], list(prompt[: best[1]])

    def find_exactly(self, tokens: list[int]) -> int | None:
        """The sequence that holds exactly these tokens."""
        return next((seq for seq, kept in self._kept.items() if kept == tokens), None)

    def keep(self, source: int, tokens: list[int]) -> None:
        """Keep the running sequence `source`, which holds `tokens`."""
        if not (self._free or self._kept) or len(tokens) < MIN_KEPT:
            return
        for seq, kept in list(self._kept.items()):
            n = common(kept, tokens)
            if n == len(tokens) and (self._has_past or n == len(kept)):
                self._touch(kept)
                return
            if n == len(kept) and self._has_past:
                self._drop(seq)
        if not self._free:
            self.drop_oldest()
        seq = self._free.pop()
        self._copy(source, seq, len(tokens))
        self._kept[seq] = list(tokens)
        self._touch(tokens)

    def take(self, seq: int, target: int, tokens: list[int]) -> None:
        """Make the first `tokens` of a sequence the running one `target`."""
        self._lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        self._copy(seq, target, len(tokens))
        # What of it goes another way is not used: a conversation may have left that behind.
        self._touch(tokens)

    def drop_oldest(self) -> bool:
        """Drop the sequence used longest ago. False if there is none."""
        for seq in self._kept:
            self._drop(seq)
            return True
        return False

    def drop_all(self) -> None:
        while self.drop_oldest():
            pass

    def _touch(self, tokens: list[int]) -> None:
        """Used now: the longest sequence that is a beginning of `tokens`, and the shortest, which
        most others share. What lies between them was a turn that is over.
        """
        used = [seq for seq, kept in self._kept.items() if tokens[: len(kept)] == kept]
        for choose in (min, max) if used else ():
            seq = choose(used, key=lambda each: len(self._kept[each]))
            self._kept[seq] = self._kept.pop(seq)

    def _copy(self, source: int, target: int, n: int) -> None:
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, n)

    def _drop(self, seq: int) -> None:
        del self._kept[seq]
        self._lib.llama_memory_seq_rm(self._memory, seq, -1, -1)
        self._free.append(seq)
