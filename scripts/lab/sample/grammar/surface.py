"""Surface noise: capitals, politeness, punctuation and the odd typo. Meaning never changes.

Slot values keep their letters (they are copied into the answer), except that a sentence without
open names may be shouted in capitals.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PREFIXES = (
    "please ",
    "could you ",
    "can you ",
    "hey, ",
    "ok, ",
    "hi, ",
    "would you ",
    "assistant, ",
    "could you please ",
    "can you please ",
    "now ",
    "so, ",
    "hey assistant, ",
    "hello, ",
    "ok now ",
    "computer, ",
)
SUFFIXES = (
    " please",
    ", please",
    " now",
    " thanks",
    ", thanks",
    " for me",
    ", ok?",
    " if you can",
    ", thank you",
)
# Verbs at the start make a request that "could you" fits; anything else gets a call only.
CALLS = (
    "hey, ",
    "ok, ",
    "hi, ",
    "so, ",
    "hey assistant, ",
    "assistant, ",
    "hello, ",
    "computer, ",
    "please, ",
)


@dataclass(frozen=True)
class Piece:
    """A stretch of text; `fixed` pieces are slot values and keep their spelling."""

    text: str
    fixed: bool


def _typo(word: str, rng: random.Random) -> str:
    i = rng.randrange(len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind == 1:
        return word[:i] + word[i + 1 :]
    return word[:i] + word[i] + word[i:]


def _with_typo(pieces: list[Piece], rng: random.Random) -> list[Piece]:
    spots = [
        (n, k)
        for n, piece in enumerate(pieces)
        if not piece.fixed
        for k, word in enumerate(piece.text.split(" "))
        if len(word) >= 5 and word.isalpha()
    ]
    if not spots:
        return pieces
    n, k = rng.choice(spots)
    parts = pieces[n].text.split(" ")
    parts[k] = _typo(parts[k], rng)
    return [*pieces[:n], Piece(" ".join(parts), False), *pieces[n + 1 :]]


def polite(pieces: list[Piece], imperative: bool, rng: random.Random) -> list[Piece]:
    """Add a call or a courtesy in front and behind, in a third of the sentences."""
    if rng.random() < 0.33:
        prefix = rng.choice(PREFIXES if imperative else CALLS)
        pieces = [Piece(prefix, False), *pieces]
    if imperative and rng.random() < 0.15:
        pieces = [*pieces, Piece(rng.choice(SUFFIXES), False)]
    return pieces


def render(
    pieces: list[Piece],
    question: bool,
    shout: bool,
    rng: random.Random,
    typo_share: float = 0.05,
    shout_share: float = 0.03,
) -> str:
    """Final text of a sentence; `shout` allows capitals throughout."""
    if rng.random() < typo_share:
        pieces = _with_typo(pieces, rng)
    text = tidy_pieces(pieces)
    style = rng.random()
    if shout and style < shout_share:
        text = text.upper()
    elif style < 0.4 and pieces and not pieces[0].fixed:
        text = text[:1].upper() + text[1:]
    if text[-1:].isalnum():
        mark = rng.random()
        if question:
            text += "?" if mark < 0.6 else ""
        else:
            text += "." if mark < 0.2 else "!" if mark < 0.24 else ""
    return text


def tidy_pieces(pieces: list[Piece]) -> str:
    """Join with single spaces and none before punctuation."""
    text = " ".join("".join(piece.text for piece in pieces).split())
    for mark in ",?!.;:":
        text = text.replace(" " + mark, mark)
    return text
