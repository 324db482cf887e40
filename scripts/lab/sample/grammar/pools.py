"""The pools of wordings: what trains, what is for decisions, what is held out, and a fair line.

A held-out wording may contain a word that training never shows for that action ("secure the front
door" when only "lock" was taught). A model that knows no text but ours cannot know such a word, so
these wordings are a kind of their own, `new-word`, scored apart. The line is drawn by a rule, not
by taste: every word must occur in a training wording of the same action, or in the training
wordings of `COMMON_FROM` forms and topics.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache

from lab.sample.grammar import plain
from lab.sample.grammar.board import BOARD_FORMS
from lab.sample.grammar.commands import FORMS, Form
from lab.sample.grammar.extra import EXTRA, EXTRA_PLAIN
from lab.sample.grammar.pattern import expand
from lab.sample.grammar.split import Split, wordings_of

ALL_FORMS: tuple[Form, ...] = FORMS + BOARD_FORMS
COMMON_FROM = 8


@cache
def form_id(index: int) -> str:
    """Stable name of a form: its action, and its place among the forms of that action."""
    do = ALL_FORMS[index].do
    return f"{do}#{sum(form.do == do for form in ALL_FORMS[:index])}"


@cache
def form_wordings(index: int, split: Split) -> tuple[str, ...]:
    """The wordings of form number `index` that belong to `split`."""
    form = ALL_FORMS[index]
    return wordings_of(form.wordings, split, salt=form.do)


@cache
def topic_wordings(index: int, split: Split) -> tuple[str, ...]:
    """The wordings of plain topic number `index` that belong to `split`."""
    return wordings_of(plain.TOPICS[index].wordings, split, salt="plain")


def extra_wordings(index: int) -> tuple[str, ...]:
    """Further training wordings of form number `index`."""
    return EXTRA.get(form_id(index), ())


def extra_topic_wordings(index: int) -> tuple[str, ...]:
    """Further training wordings of plain topic number `index`."""
    return EXTRA_PLAIN.get(plain.TOPICS[index].wordings[0], ())


@cache
def form_has_new_word(index: int, wording: str) -> bool:
    """Does `wording` use a word that training never shows for this action?"""
    return bool(_words(wording) - _action_words()[_action(index)] - _common_words())


@cache
def topic_has_new_word(index: int, wording: str) -> bool:
    """Does `wording` use a word that training never shows for this topic?"""
    return bool(_words(wording) - _topic_words()[index] - _common_words())


def slots_of(wording: str) -> list[str]:
    """Slot names in a wording, in order."""
    return [part.split("}")[0] for part in wording.split("{")[1:]]


@cache
def _words(wording: str) -> frozenset[str]:
    return frozenset(
        word for reading in expand(wording) for word in re.findall(r"\{\w+\}|[\w'-]+", reading)
    )


def _action(index: int) -> str:
    """Forms that share an action share its words; questions also need the same thing asked."""
    form = ALL_FORMS[index]
    asked = form.fixed.get("what") or form.fixed.get("topic") or ""
    return f"{form.do} {asked}"


@cache
def _action_words() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for index in range(len(ALL_FORMS)):
        for wording in (*form_wordings(index, "train"), *extra_wordings(index)):
            found[_action(index)] |= _words(wording)
    return found


@cache
def _topic_words() -> list[set[str]]:
    return [
        set().union(
            *(
                _words(wording)
                for wording in (*topic_wordings(index, "train"), *extra_topic_wordings(index))
            )
        )
        for index in range(len(plain.TOPICS))
    ]


@cache
def _common_words() -> frozenset[str]:
    n_pools: Counter[str] = Counter()
    for index in range(len(ALL_FORMS)):
        pool = (*form_wordings(index, "train"), *extra_wordings(index))
        n_pools.update(set().union(*map(_words, pool)))
    for words in _topic_words():
        n_pools.update(words)
    return frozenset(word for word, n in n_pools.items() if n >= COMMON_FROM)
