"""The sample model's world, as a seeded generator: requests, their JSON answers, conversations.

Everything here is deterministic: the same split, seed and index give the same example on every
machine and Python. Three splits exist. `train` feeds the training, `dev` is for every decision
(when to stop, what to add), `held` is looked at once, at the end. A wording lives in one split
only, and so does a combination of two or more slot values (see `grammar/split.py`).

    PYTHONPATH=scripts python -m lab.sample.generator --split train --n 20
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass, replace
from typing import Any, Literal

from lab.sample.grammar import plain
from lab.sample.grammar.pattern import sample
from lab.sample.grammar.pools import (
    ALL_FORMS,
    extra_topic_wordings,
    extra_wordings,
    form_has_new_word,
    form_wordings,
    slots_of,
    topic_has_new_word,
    topic_wordings,
)
from lab.sample.grammar.slots import OPEN_SLOTS, SLOTS, Draw, Lesson, unseen_words
from lab.sample.grammar.split import Split, combination_split
from lab.sample.grammar.surface import Piece, polite, render

Kind = Literal["command", "unseen-name", "plain", "new-word"]
Message = dict[str, str]

DEFAULT_SYSTEM = "You are the home assistant of edgekit."
SYSTEM_PROMPTS = (
    "Answer within 2 seconds.",
    "Be brief.",
    "You are a helpful assistant.",
    "Answer in one line.",
    "You run on a small board.",
    "You are a home assistant. Answer with JSON.",
    "Reply at once.",
    "You are a voice assistant for a flat.",
    "Answer within 500 ms.",
)

# The one order in which an answer names its fields; exact match depends on it.
KEY_ORDER = (
    "do",
    "what",
    "room",
    "device",
    "door",
    "person",
    "name",
    "item",
    "text",
    "state",
    "level",
    "temp_c",
    "color",
    "speed",
    "step",
    "action",
    "topic",
    "in_s",
    "day",
    "at",
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_IMPERATIVE = _words(
    "turn switch set dim put make flip change bring open close raise lower pull roll move run "
    "play start stop pause skip cancel remind add lock unlock announce say tell let send call "
    "ring give show check read wake get create delete remove power heat warm keep count write"
)
_QUESTION = _words(
    "what what's how is are who which when where did do does can will why since have am any "
    "may must would should under"
)


# Training begins with the first lesson; the second asks for more copying, from the sentence and
# from earlier turns, once copying as such is there, and has more wordings. The third makes names
# from all words, because a word that was never copied cannot be copied. The fourth adds noise and
# dropout, for wordings that training never shows.
_MORE_COPYING = Lesson(
    pseudo_share=0.6,
    compound_share=0.3,
    extra_wordings=True,
    name_share=0.05,
    name_share_known=0.2,
    tell_share=0.7,
    tell_share_known=0.2,
)
_ALL_WORDS = replace(_MORE_COPYING, compound_share=0.4, all_words=True)
LESSONS = (
    Lesson(),
    _MORE_COPYING,
    _ALL_WORDS,
    replace(_ALL_WORDS, typo_share=0.15, shout_share=0.08, dropout=0.1),
)


@dataclass(frozen=True)
class Sample:
    """One request and its answer, with where it came from (for the leakage test)."""

    text: str
    answer: str
    kind: Kind
    wording: str
    fields: dict[str, Any]


def canonical(fields: dict[str, Any]) -> str:
    """The one JSON spelling of an answer: compact, fields in `KEY_ORDER`."""
    unknown = set(fields) - set(KEY_ORDER)
    if unknown:
        raise ValueError(f"fields {sorted(unknown)} are not in KEY_ORDER; add them there first")
    ordered = {key: fields[key] for key in KEY_ORDER if key in fields}
    return json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))


def _fill(pieces: list[str], draw: Draw) -> list[Piece]:
    filled = []
    for piece in pieces:
        if piece.startswith("{"):
            filled.append(Piece(SLOTS[piece[1:-1]](draw), True))
        else:
            filled.append(Piece(piece, False))
    return filled


def form_pool(index: int, split: Split, kind: Kind, lesson: Lesson = LESSONS[0]) -> tuple[str, ...]:
    """The wordings of a form that may make an example of this kind; can be empty."""
    pool = form_wordings(index, split)
    if split == "train":
        pool += extra_wordings(index) if lesson.extra_wordings else ()
    else:
        wants_new = kind == "new-word"
        pool = tuple(text for text in pool if form_has_new_word(index, text) == wants_new)
    if kind == "unseen-name":
        pool = tuple(text for text in pool if OPEN_SLOTS & set(slots_of(text)))
    return pool


def topic_pool(
    index: int, split: Split, kind: Kind, lesson: Lesson = LESSONS[0]
) -> tuple[str, ...]:
    """The wordings of a plain topic that may make an example of this kind; can be empty."""
    pool = topic_wordings(index, split)
    if split == "train":
        return pool + (extra_topic_wordings(index) if lesson.extra_wordings else ())
    wants_new = kind == "new-word"
    return tuple(text for text in pool if topic_has_new_word(index, text) == wants_new)


def command_sample(
    index: int,
    split: Split,
    rng: random.Random,
    kind: Kind = "command",
    lesson: Lesson = LESSONS[0],
) -> Sample:
    """One request of form `index`; draws again until the combination belongs to `split`."""
    form = ALL_FORMS[index]
    unseen = kind == "unseen-name"
    wording = rng.choice(form_pool(index, split, kind, lesson))
    for _ in range(400):
        draw = Draw(rng, unseen=unseen, allow_pseudo=split == "train", lesson=lesson)
        pieces = _fill(sample(wording, rng), draw)
        if form.timed and rng.random() < 0.3:
            when = Piece(SLOTS["when"](draw), True)
            if rng.random() < 0.6:
                pieces = [*pieces, Piece(" ", False), when]
            else:
                pieces = [when, Piece(rng.choice((" ", " ", ", ")), False), *pieces]
        owner = combination_split(draw.fields)
        if owner is None or owner == split:
            break
    else:
        raise RuntimeError(f"no combination of {wording!r} belongs to split {split!r}")
    fields = {"do": form.do, **form.fixed, **draw.fields}
    first = pieces[0].text.split(" ")[0]
    question = first in _QUESTION
    imperative = first in _IMPERATIVE and ":" not in wording
    pieces = polite(pieces, imperative, rng)
    text = render(
        pieces, question, draw.open_slots == 0, rng, lesson.typo_share, lesson.shout_share
    )
    return Sample(text, canonical(fields), kind, wording, draw.fields)


def plain_sample(
    index: int, split: Split, rng: random.Random, kind: Kind = "plain", lesson: Lesson = LESSONS[0]
) -> Sample:
    """One plain question of topic `index`."""
    wording = rng.choice(topic_pool(index, split, kind, lesson))
    pieces = [Piece(part, False) for part in sample(wording, rng)]
    first = wording.split(" ")[0]
    if rng.random() < 0.15:
        pieces = [
            Piece(rng.choice(("hey, ", "ok, ", "so, ", "hi, ", "assistant, ")), False),
            *pieces,
        ]
    text = render(pieces, first in _QUESTION, True, rng, lesson.typo_share, lesson.shout_share)
    return Sample(text, plain.TOPICS[index].answer, kind, wording, {})


_WEIGHTS = [form.weight for form in ALL_FORMS]
_PLAIN_SHARE = 0.2


def any_sample(split: Split, rng: random.Random, lesson: Lesson = LESSONS[0]) -> Sample:
    """A request drawn as in training: mostly commands, by weight, and some plain questions."""
    while True:
        if rng.random() < _PLAIN_SHARE:
            index = rng.randrange(len(plain.TOPICS))
            if topic_pool(index, split, "plain"):
                return plain_sample(index, split, rng, lesson=lesson)
            continue
        index = rng.choices(range(len(ALL_FORMS)), _WEIGHTS)[0]
        if not form_pool(index, split, "command"):
            continue
        found = command_sample(index, split, rng, lesson=lesson)
        if split != "train" or not unseen_words() & set(found.text.lower().split()):
            return found


def system_prompt(rng: random.Random) -> str | None:
    """Mostly the default; sometimes another short one, sometimes none at all."""
    kind = rng.random()
    return DEFAULT_SYSTEM if kind < 0.75 else None if kind < 0.85 else rng.choice(SYSTEM_PROMPTS)


def _name_turn(rng: random.Random, known: str | None, tell: bool) -> tuple[str, str, str | None]:
    """A turn about the user's name: told, or asked for; shows that the chat is remembered."""
    if tell:
        draw = Draw(rng)
        given = SLOTS["person"](draw).capitalize()
        text = rng.choice(plain.NAME_GIVEN).replace("{person}", given)
        return text, f"Nice to meet you, {given}.", given
    text = rng.choice(plain.NAME_ASKED) + rng.choice(("", "?"))
    return text, f"Your name is {known}." if known else plain.NAME_UNKNOWN, known


def conversation(rng: random.Random, n_turns: int, lesson: Lesson = LESSONS[0]) -> list[Message]:
    """A training conversation of `n_turns` requests, each answered."""
    messages: list[Message] = []
    system = system_prompt(rng)
    if system is not None:
        messages.append({"role": "system", "content": system})
    known: str | None = None
    for _ in range(n_turns):
        if rng.random() < (lesson.name_share_known if known else lesson.name_share):
            tell = rng.random() < (lesson.tell_share_known if known else lesson.tell_share)
            text, answer, known = _name_turn(rng, known, tell)
        else:
            found = any_sample("train", rng, lesson)
            text, answer = found.text, found.answer
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": answer})
    return messages


def main() -> None:
    """Print examples, for a person to judge."""
    parser = argparse.ArgumentParser(description="print examples of the sample model's world")
    parser.add_argument("--split", choices=("train", "dev", "held"), default="train")
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for _ in range(args.n):
        found = any_sample(args.split, rng)
        print(f"{found.text}\n    {found.answer}")


if __name__ == "__main__":
    main()
