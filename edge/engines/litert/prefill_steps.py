"""Which compiled step takes the next tokens of a prompt: a TFLite file holds its prefill at a few
exported lengths and decode at one. The fastest by what was measured so far is taken."""

from __future__ import annotations

from collections.abc import Sequence

#: Until measured: a step of n tokens is taken to cost as much as 1 + n/8 single ones (decode is
#: bound by memory, prefill by arithmetic).
_TOKENS_PER_DECODE = 8


class StepChooser:
    """Exported lengths of prefill steps, and the seconds that each was seen to take."""

    def __init__(self, lengths: Sequence[int], *, largest: int | None = None) -> None:
        self._lengths = tuple(sorted({n for n in lengths if largest is None or n <= largest}))
        self._seconds: dict[int, float] = {}

    def measured(self, length: int, seconds: float) -> None:
        """Take in the seconds of a step. The fastest counts: a busy machine slows one down."""
        self._seconds[length] = min(seconds, self._seconds.get(length, seconds))

    def expected_s(self, length: int) -> float:
        """Seconds that a step of `length` is expected to take."""
        if length in self._seconds:
            return self._seconds[length]
        unit = self._seconds.get(1, 0.0)
        for known, seconds in self._seconds.items():
            unit = unit or seconds / (1 + known / _TOKENS_PER_DECODE)
        return (unit or 1.0) * (1 + length / _TOKENS_PER_DECODE)

    def next_length(
        self, n_left: int, room: int, *, budget_s: float | None = None, whole: bool = False
    ) -> int:
        """Length of the step to run now, 1 for a single token. `n_left` tokens of the prompt
        remain, `room` positions are free: a step writes all of its positions. With `budget_s` a
        step may take no longer than that, where there is a choice. `whole`: only full steps.
        """
        fits = [n for n in self._lengths if n <= room]
        if budget_s is not None:
            known = [n for n in fits if n in self._seconds]
            quick = [n for n in known if self._seconds[n] <= budget_s]
            larger = [n for n in fits if n not in self._seconds and n > max(known, default=0)]
            # One untried length more, if by the speed of those tried it stays within the budget.
            if larger and (not known or self.expected_s(larger[0]) <= budget_s):
                quick.append(larger[0])
            fits = quick or fits[:1]
        full = [n for n in fits if n <= n_left]
        partial = [] if whole else [n for n in fits if n > n_left][:1]
        return min([1, *full, *partial], key=lambda n: (self.expected_s(n) / min(n, n_left), -n))
