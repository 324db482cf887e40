"""The sample model's task: held-out requests, the expected answers, and an exact-match score.

Any engine can be measured with it, because it asks only for a function from chat messages to text:

    from lab.sample.task import held_out, score
    result = score(held_out(), lambda messages: my_engine_reply(messages))
    print(result.accuracy("command"), result.accuracy("unseen-name"), result.accuracy("plain"))

An answer counts when it is the expected line, letter for letter (white space at the ends aside).
Nothing is dropped: an empty or broken answer is a miss. Decode greedily, and stop at <|im_end|>.
Three kinds: `command` uses known names in wordings and slot combinations never trained on;
`unseen-name` puts a real word into it that training never showed; `plain` asks a known question
in a wording never trained on. A fourth, `new-word`, comes from `new_words()`: held-out wordings
with a word that training never shows for that action (`grammar/pools.py`). No torch here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lab.sample import generator as g
from lab.sample.generator import Kind, Message
from lab.sample.grammar import plain
from lab.sample.grammar.pools import ALL_FORMS
from lab.sample.grammar.split import Split

KINDS: tuple[Kind, ...] = ("command", "unseen-name", "plain", "new-word")

_SEEDS: dict[Split, int] = {"train": 4100, "dev": 4200, "held": 4300}
_PER_FORM = {"command": 20, "unseen-name": 12, "plain": 6, "new-word": 6}


@dataclass(frozen=True)
class Example:
    """One request as chat messages (no system message: the template adds the default)."""

    messages: tuple[Message, ...]
    expected: str
    kind: Kind
    wording: str = ""


@dataclass(frozen=True)
class Miss:
    """An example that was answered wrongly, and what came instead."""

    example: Example
    got: str


@dataclass(frozen=True)
class TaskScore:
    """Counts per kind; every accuracy is derived from them."""

    n_asked: dict[str, int]
    n_exact: dict[str, int]
    misses: tuple[Miss, ...] = field(default=(), repr=False)

    def accuracy(self, kind: Kind | None = None) -> float | None:
        """Share of exact answers of one kind, or of all; None when none was asked."""
        kinds = [kind] if kind else list(self.n_asked)
        n_asked = sum(self.n_asked.get(k, 0) for k in kinds)
        return sum(self.n_exact.get(k, 0) for k in kinds) / n_asked if n_asked else None

    def to_dict(self) -> dict[str, Any]:
        """Counts and accuracies, ready for JSON."""
        return {
            "n_asked": dict(self.n_asked),
            "n_exact": dict(self.n_exact),
            "exact": {k: self.accuracy(k) for k in KINDS if self.n_asked.get(k)},
            "exact_all": self.accuracy(),
        }


def held_out(limit: int | None = None) -> list[Example]:
    """The held-out examples, always the same; `limit` keeps an even, fixed part of each kind."""
    return _limited(_examples("held"), limit)


def dev(limit: int | None = None) -> list[Example]:
    """The examples for decisions; use these as often as you like, and `held_out` once."""
    return _limited(_examples("dev"), limit)


def new_words(split: Split = "held") -> list[Example]:
    """Examples whose wording has a word that training never shows for that action."""
    return list(_examples(split, new_word=True))


def with_history(examples: Sequence[Example], n_turns: int, seed: int = 5) -> list[Example]:
    """The same examples as the last turn of a chat with `n_turns` answered requests before."""
    rng = random.Random(seed)
    grown = []
    for example in examples:
        past: list[Message] = []
        for _ in range(n_turns):
            turn = g.any_sample("train", rng)
            past.append({"role": "user", "content": turn.text})
            past.append({"role": "assistant", "content": turn.answer})
        grown.append(
            Example((*past, *example.messages), example.expected, example.kind, example.wording)
        )
    return grown


def score(examples: Sequence[Example], answer: Callable[[list[Message]], str]) -> TaskScore:
    """Ask every example and count exact answers."""
    n_asked: dict[str, int] = {}
    n_exact: dict[str, int] = {}
    misses: list[Miss] = []
    for example in examples:
        got = answer([dict(message) for message in example.messages]).strip()
        n_asked[example.kind] = n_asked.get(example.kind, 0) + 1
        if got == example.expected:
            n_exact[example.kind] = n_exact.get(example.kind, 0) + 1
        else:
            n_exact.setdefault(example.kind, 0)
            misses.append(Miss(example, got))
    return TaskScore(n_asked, n_exact, tuple(misses))


@cache
def _examples(split: Split, new_word: bool = False) -> tuple[Example, ...]:
    found: list[Example] = []
    asked: set[str] = set()

    def add(sample: g.Sample) -> None:
        if sample.text.lower() not in asked:
            asked.add(sample.text.lower())
            message = {"role": "user", "content": sample.text}
            found.append(Example((message,), sample.answer, sample.kind, sample.wording))

    rng = random.Random(_SEEDS[split])
    command_kinds: tuple[Kind, ...] = ("new-word",) if new_word else ("command", "unseen-name")
    for kind in command_kinds:
        for index in range(len(ALL_FORMS)):
            if g.form_pool(index, split, kind):
                for _ in range(_PER_FORM[kind]):
                    add(g.command_sample(index, split, rng, kind))
    plain_kind: Kind = "new-word" if new_word else "plain"
    for index in range(len(plain.TOPICS)):
        if g.topic_pool(index, split, plain_kind):
            for _ in range(_PER_FORM[plain_kind]):
                add(g.plain_sample(index, split, rng, plain_kind))
    return tuple(found)


def _limited(examples: tuple[Example, ...], limit: int | None) -> list[Example]:
    """Every n-th example: the list is ordered by kind and form, so all of them stay present."""
    if limit is None or limit >= len(examples):
        return list(examples)
    if limit < 1:
        raise ValueError(f"limit is {limit}; give at least 1, or None for all {len(examples)}")
    return [examples[n * len(examples) // limit] for n in range(limit)]
