"""Guess the next tokens from the text itself: what followed the same few tokens before.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): the
guesses go through the model behind the token they follow, in one step; those that greedy decoding
would have chosen are kept. It pays where a step of several tokens costs little more than a step of
one and guesses are often right: both are measured, and guessing stops while it does not pay.
"""

from collections import Counter
from collections.abc import Sequence

from boardfit.edge.engines.constraint import ConstrainedSampler

#: Tokens that must be the same for what followed them to be guessed.
N_GRAM = 3
# Steps without guesses that must have been timed before the first guess.
_PLAIN_FIRST = 2
# Tokens that a grammar forces are read in one step, up to this many.
_MOST_FORCED = 15
# Of a sum over steps, what is kept with each new one: about 20 steps count.
_FORGET = 0.95
# Guessing steps that are made before their gain is judged.
_TRIAL_STEPS = 3
# Gain below which guessing pauses, and for how many tokens: twice as many each time in a row.
_WORTH = 1.03
_PAUSE_FIRST, _PAUSE_LAST = 16, 1024


class Lookup:
    """The tokens so far, and where each run of `N_GRAM` of them was seen last."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._after: dict[tuple[int, ...], int] = {}
        # The run at the very end has nothing behind it yet.
        for i in range(N_GRAM, len(self._tokens)):
            self._after[tuple(self._tokens[i - N_GRAM : i])] = i

    def append(self, token: int) -> None:
        """One more token."""
        if len(self._tokens) >= N_GRAM:
            self._after[tuple(self._tokens[-N_GRAM:])] = len(self._tokens)
        self._tokens.append(token)

    def guess(self, n: int) -> list[int]:
        """At most `n` tokens that followed the last time that the text ended as it does now."""
        found = self._after.get(tuple(self._tokens[-N_GRAM:]))
        return [] if found is None else self._tokens[found : found + n]


class Gain:
    """Whether guessing pays, and how many tokens to guess; from the times of steps."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.length = min(4, most)
        self._plain_s: float | None = None
        self._n_plain = 0
        self._guess_s = self._guess_tokens = 0.0
        self._n_steps = 0
        #: Steps with guesses since the engine was opened.
        self.n_made = 0
        self._pause = 0
        self._next_pause = _PAUSE_FIRST

    @property
    def value(self) -> float | None:
        """Speed with guesses over speed without; None before both were measured."""
        if not self._guess_s or self._plain_s is None:
            return None
        return self._guess_tokens * self._plain_s / self._guess_s

    def allows(self) -> int:
        """Tokens to guess before the next step; asked once per step."""
        if self._pause > 0:
            self._pause -= 1
            return 0
        return self.length if self._n_plain >= _PLAIN_FIRST else 0

    def plain(self, seconds: float) -> None:
        """A step of one token took `seconds`."""
        self._n_plain += 1
        before = self._plain_s
        # A stall is no measure of the others.
        self._plain_s = seconds if before is None else 0.8 * before + 0.2 * min(seconds, 3 * before)

    def guessed(self, n_guesses: int, n_right: int, seconds: float) -> None:
        """Take in a step with `n_guesses` guesses, of which the first `n_right` were right."""
        self._guess_s = _FORGET * self._guess_s + seconds
        self._guess_tokens = _FORGET * self._guess_tokens + 1 + n_right
        self._n_steps += 1
        self.n_made += 1
        if n_right == n_guesses:
            self.length = min(2 * self.length, self._most)
        else:
            self.length = min(max(2, n_right + 1), self._most)
        gain = self.value
        if gain is not None and self._n_steps >= _TRIAL_STEPS:
            if gain < _WORTH:
                self._pause, self._next_pause = (
                    self._next_pause,
                    min(2 * self._next_pause, _PAUSE_LAST),
                )
                self._guess_s = self._guess_tokens = 0.0
                self._n_steps = 0
                self.length = min(4, self._most)
            else:
                self._next_pause = _PAUSE_FIRST


class Sharing:
    """How long a step takes that gives several streams a token each, beside a step for one."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}
        self._n_steps: Counter[int] = Counter()

    def observe(self, n: int, seconds: float) -> None:
        """A step gave `n` streams a token in `seconds`."""
        before = self._step_s.get(n, seconds)
        self._n_steps[n] += 1
        self._step_s[n] = 0.9 * before + 0.1 * min(seconds, 3 * before)

    def slowdown(self, n: int) -> float:
        """How many times longer a step for `n` takes than a step for one, at the most `n` times."""
        one, several = self._step_s.get(1), self._step_s.get(n)
        if n < 2 or one is None or several is None:
            return float(n)
        return min(float(n), max(1.0, several / one))

    def pays(self, n: int) -> bool:
        """Whether `n` streams are answered sooner together than one after another."""
        if self._n_steps[n] < _TRIAL_STEPS or not self._n_steps[1]:
            return True
        return n >= _WORTH * self._step_s[n] / self._step_s[1]


class Guesser:
    """The guesses of one stream: made before a step, checked token by token after it. `index` is
    the place in the last step whose logits come next (-1: its only one). Without a `gain` nothing
    is looked up. `bound` knows what must follow, and which guesses may.
    """

    def __init__(
        self, prompt: Sequence[int], gain: Gain | None, bound: ConstrainedSampler | None = None
    ) -> None:
        self.index = -1
        self._gain, self._bound = gain, bound
        self._lookup = Lookup(prompt if gain else ())
        self.is_forced = False
        self._left: list[int] = []
        self._n_guesses = 0
        self._step_s = 0.0

    @property
    def n_left(self) -> int:
        """Guesses in the cache that were not checked yet."""
        return len(self._left)

    def guess(self, room: int) -> list[int]:
        """Guesses to put behind the token that was checked last, at most `room`."""
        if room > 0 and self._bound is not None and self._bound.forced:
            self.is_forced = True
            return self._bound.forced[: min(room, _MOST_FORCED)]
        n = min(self._gain.allows(), room) if self._gain else 0
        guesses = self._lookup.guess(n) if n > 0 else []
        return guesses[: self._bound.check(guesses)] if self._bound is not None else guesses

    def stepped(self, guesses: list[int], seconds: float) -> None:
        """A step with these guesses was computed in `seconds`."""
        if guesses:
            self.index, self._left = -1 if self.is_forced else 0, guesses
            self._n_guesses, self._step_s = len(guesses), seconds
        elif self._gain is not None:
            self._gain.plain(seconds)

    def check(self, token: int) -> tuple[bool, int]:
        """Whether the chosen token is in the cache already, and how many wrong guesses are."""
        self._lookup.append(token)
        if self._left and self._left[0] == token:
            del self._left[0]
            self.index += not self.is_forced
            return True, 0
        n_wrong = len(self._left)
        if self.index >= 0 and self._gain is not None and not self.is_forced:
            self._gain.guessed(self._n_guesses, self._n_guesses - n_wrong, self._step_s)
        self.index, self._left, self.is_forced = -1, [], False
        return False, n_wrong
