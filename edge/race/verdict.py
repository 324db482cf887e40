"""Compute the winner for each prompt length: pure arithmetic on medians.

A request of n tokens that is answered with m takes

    t(n) = prefill(n) + m / decode(n)

with prefill(n) in seconds, linear between the lengths that were measured (through the origin below
the first, on with the last slope beyond), and decode(n) in tokens per second, linear between
depths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Tokens of the answer that a verdict is about.
N_ANSWER = 64
#: An advantage below this is noise: the current leader keeps the lead.
MARGIN = 0.03


@dataclass(frozen=True)
class EntrantPace:
    """An entrant's medians: prefill seconds by prompt length, decode tokens/s by depth."""

    label: str
    prefill_s: Mapping[int, float]
    decode_tps: Mapping[int, float]

    def seconds(self, n_prompt: int, n_answer: int = N_ANSWER) -> float:
        """Predicted time of one request, from measured points."""
        prefill = interpolate({0: 0.0, **self.prefill_s}, n_prompt)
        return prefill + n_answer / interpolate(self.decode_tps, n_prompt, flat=True)


@dataclass(frozen=True)
class Lead:
    """`label` wins for prompts of `first` to `last` tokens. `ratio` is how much longer the best
    other bundle takes, in the middle of them (1.0: no other bundle).
    """

    label: str
    first: int
    last: int
    ratio: float


def interpolate(points: Mapping[int, float], x: int, *, flat: bool = False) -> float:
    """Linear between points; beyond them constant (`flat`), else on with the nearest slope. Behind
    the last point it does not fall: a longer prompt takes no less time.
    """
    known = sorted(points.items())
    if len(known) == 1 or (flat and x <= known[0][0]):
        return known[0][1]
    if flat and x >= known[-1][0]:
        return known[-1][1]
    pairs = list(pairwise(known))
    (x0, y0), (x1, y1) = next((p for p in pairs if x <= p[1][0]), pairs[-1])
    found = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return max(found, y1) if x > x1 else found


def find_leads(paces: Sequence[EntrantPace], longest: int) -> list[Lead]:
    """The winner for every prompt of 1 to `longest` tokens, as ranges. Raises ValueError."""
    if not paces:
        raise ValueError("no bundle finished")
    found: list[tuple[EntrantPace, int, int]] = []
    for n in range(1, longest + 1):
        best = min(paces, key=lambda pace: pace.seconds(n))
        if not found:
            found.append((best, n, n))
            continue
        leader, first, _ = found[-1]
        if leader.seconds(n) <= best.seconds(n) * (1 + MARGIN):
            found[-1] = (leader, first, n)
            continue
        # The lead changed hands where the two were equal, not where the margin was passed.
        equal = n
        while equal > first + 1 and best.seconds(equal - 1) < leader.seconds(equal - 1):
            equal -= 1
        found[-1:] = [(leader, first, equal - 1), (best, equal, n)]
    return [
        Lead(pace.label, first, last, advantage(pace, paces, (first + last) // 2))
        for pace, first, last in found
    ]


def advantage(winner: EntrantPace, paces: Sequence[EntrantPace], n_prompt: int) -> float:
    engine = winner.label.split(",")[0]
    others = [pace.seconds(n_prompt) for pace in paces if pace.label.split(",")[0] != engine]
    return min(others) / winner.seconds(n_prompt) if others else 1.0


def sentence(found: Sequence[Lead]) -> str:
    """`prompts over 210 tokens: litert …; shorter: llama_cpp …`, in plain words."""
    if len(found) == 1:
        (only,) = found
        gain = f", {only.ratio:.2f}× as fast as the next bundle" if only.ratio > 1 else ""
        return f"{only.label} wins for all prompts up to {only.last} tokens{gain}"
    if len(found) == 2:
        short, long = found
        return f"prompts over {short.last} tokens: {long.label}; shorter: {short.label}"
    return "; ".join(f"prompts of {w.first} to {w.last} tokens: {w.label}" for w in found)
