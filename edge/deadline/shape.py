"""Choose a version of a conversation whose prefill fits its time.

In this order: everything (what the KV cache holds costs nothing), without the oldest turns, and
with sentences of a long last message left out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from boardfit.edge.deadline.outcome import Adjustment
from boardfit.edge.deadline.shorten import Sentence, select, split
from boardfit.edge.deadline.time_model import Span, TimeModel
from boardfit.edge.types import Message, drop_oldest_turn

#: A message of fewer tokens is never shortened: there is nothing in it to choose from.
MIN_LONG_TOKENS = 64
_ROUND_WORDS = (5, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300)
# Shortening tries at most this many sizes; each renders and tokenizes the conversation.
_TRIES = 5


@dataclass(frozen=True)
class Version:
    """One way to ask: messages, token ids, how many are cached, seconds for the others."""

    messages: tuple[Message, ...]
    tokens: tuple[int, ...]
    n_reused: int
    prefill: Span
    adjustments: tuple[Adjustment, ...] = ()

    @property
    def n_new(self) -> int:
        return len(self.tokens) - self.n_reused


@dataclass(frozen=True)
class Shaper:
    """What versions are made with: `render` gives token ids, `count` a text's tokens, `reusable`
    how many leading tokens the cache holds. `room` is the most tokens of a version.
    """

    render: Callable[[list[Message]], list[int]]
    count: Callable[[str], int]
    reusable: Callable[[Sequence[int]], int]
    times: TimeModel
    cold: bool = False
    room: int = 1 << 30

    def make_version(self, messages: Sequence[Message]) -> Version:
        tokens = self.render(list(messages))
        n_reused = min(self.reusable(tokens), len(tokens) - 1)
        prefill = self.times.prefill(len(tokens) - n_reused, n_reused, cold=self.cold)
        return Version(tuple(messages), tuple(tokens), n_reused, prefill)

    def fits(self, version: Version, allowed_s: float) -> bool:
        return len(version.tokens) <= self.room and version.prefill.high <= allowed_s

    def _misses_by(self, version: Version) -> tuple[int, float]:
        """What to make small while nothing fits: tokens too many for the context, then time."""
        return max(0, len(version.tokens) - self.room), version.prefill.high

    def find_fitting(self, full: Version, allowed_s: float) -> Version:
        """The fullest version that fits the context and `allowed_s`; else the nearest there is."""
        best = full
        messages: tuple[Message, ...] | None = full.messages
        n_dropped = 0
        while not self.fits(best, allowed_s):
            messages = drop_oldest_turn(messages)
            if messages is None:
                break
            n_dropped += 1
            turns = "turn" if n_dropped == 1 else "turns"
            found = self._adjust(full, messages, "dropped", f"{n_dropped} old {turns} forgotten")
            # Without its beginning a conversation loses what is cached of it: it may get slower.
            if self._misses_by(found) < self._misses_by(best):
                best = found
        if not self.fits(best, allowed_s):
            best = self.shorten(best, allowed_s) or best
        return best

    def shorten(self, full: Version, allowed_s: float) -> Version | None:
        """`full` without sentences of its last message, so that it fits, or the quickest found."""
        last = full.messages[-1]
        pieces = split(last.content)
        sizes = [self.count(piece.text) for piece in pieces]
        total = sum(sizes)
        if total < MIN_LONG_TOKENS or all(piece.is_request for piece in pieces):
            return None
        frame = len(full.tokens) - full.n_reused - total
        in_time = self.times.prefill_tokens(allowed_s, full.n_reused, cold=self.cold)
        budget = min(in_time, self.room - full.n_reused) - frame
        best: Version | None = None
        for _ in range(_TRIES):
            found = self._select(full, pieces, sizes, budget)
            if found is None:
                break
            if best is None or self._misses_by(found) < self._misses_by(best):
                best = found
            if self.fits(found, allowed_s):
                return found
            budget = int(budget * 0.85) - 4
        # Nothing fits: the request alone is the quickest that can be asked.
        request = sum(s for s, piece in zip(sizes, pieces, strict=True) if piece.is_request)
        shortest = self._select(full, pieces, sizes, request)
        candidates = [v for v in (best, shortest) if v is not None]
        return min(candidates, key=self._misses_by, default=None)

    def ask_for_brevity(self, version: Version, n_tokens: int) -> Version:
        # English takes about 4 tokens for 3 words.
        fitting = [n for n in _ROUND_WORDS if n <= 0.6 * n_tokens]
        words = max(fitting, default=_ROUND_WORDS[0])
        last = version.messages[-1]
        text = f"{last.content}\n\n(Answer in at most {words} words.)"
        found = self.make_version((*version.messages[:-1], dataclasses.replace(last, content=text)))
        adjustment = Adjustment("told", f"asked to answer in at most {words} words", 0.0)
        return dataclasses.replace(found, adjustments=(*version.adjustments, adjustment))

    def _select(
        self, full: Version, pieces: list[Sentence], sizes: list[int], budget: int
    ) -> Version | None:
        text = select(pieces, sizes, budget)
        if text is None:
            return None
        kept = self.count(text)
        messages = (*full.messages[:-1], dataclasses.replace(full.messages[-1], content=text))
        cost = f"{kept} of {sum(sizes)} tokens of the message kept, the most relevant sentences"
        return self._adjust(full, messages, "selected", cost)

    def _adjust(
        self, full: Version, messages: tuple[Message, ...], kind: str, cost: str
    ) -> Version:
        found = self.make_version(messages)
        change = Adjustment(kind, cost, full.prefill.mid - found.prefill.mid)
        return dataclasses.replace(found, adjustments=(*full.adjustments, change))
