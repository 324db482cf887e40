"""The proof that held-out means held out: no wording, reading, sentence, combination or name leaks.

Wordings are a finite language, so their disjointness is checked in full, not by sampling.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict

import pytest

from lab.sample import generator as g
from lab.sample import task
from lab.sample.grammar import plain, pools, words
from lab.sample.grammar.extra import EXTRA, EXTRA_PLAIN
from lab.sample.grammar.pattern import expand
from lab.sample.grammar.slots import unseen_words
from lab.sample.grammar.split import SPLITS, combination_split, wordings_of


def all_wordings():
    """(split, meaning, wording) of everything that can be said."""
    for split in SPLITS:
        for index, form in enumerate(pools.ALL_FORMS):
            extra = pools.extra_wordings(index) if split == "train" else ()
            for wording in (*pools.form_wordings(index, split), *extra):
                yield split, (form.do, *form.fixed.items()), wording
        for index, topic in enumerate(plain.TOPICS):
            extra = pools.extra_topic_wordings(index) if split == "train" else ()
            for wording in (*pools.topic_wordings(index, split), *extra):
                yield split, topic.answer, wording


def bare(text):
    """A sentence without case, punctuation and courtesy: what two sentences must not share."""
    text = " ".join(re.findall(r"[\w'%°:.-]+", text.lower())).rstrip(".")
    return text


@pytest.fixture(scope="module")
def train_samples():
    rng = random.Random(99)
    return [g.any_sample("train", rng, lesson) for lesson in g.LESSONS for _ in range(15000)]


def test_every_form_has_wordings_in_every_split():
    for index, form in enumerate(pools.ALL_FORMS):
        parts = [set(pools.form_wordings(index, split)) for split in SPLITS]
        assert all(parts), form
        assert sum(map(len, parts)) == len(set(form.wordings)) == len(form.wordings)


def test_no_reading_of_a_wording_is_in_two_splits():
    owners = defaultdict(set)
    for split, _meaning, wording in all_wordings():
        for reading in expand(wording):
            owners[reading].add(split)
    assert len(owners) > 1500
    assert [reading for reading, splits in owners.items() if len(splits) > 1] == []


def test_no_reading_has_two_meanings():
    meanings = defaultdict(set)
    for _split, meaning, wording in all_wordings():
        for reading in expand(wording):
            meanings[reading].add(meaning)
    assert [reading for reading, found in meanings.items() if len(found) > 1] == []


def test_examples_come_from_wordings_of_their_split():
    for examples, split in (
        (task.held_out(), "held"),
        (task.new_words(), "held"),
        (task.dev(), "dev"),
        (task.new_words("dev"), "dev"),
    ):
        own = {wording for s, _, wording in all_wordings() if s == split}
        assert {example.wording for example in examples} <= own


def test_no_held_out_sentence_is_a_training_sentence(train_samples):
    trained = {bare(sample.text) for sample in train_samples}
    for examples in (task.held_out(), task.dev(), task.new_words(), task.new_words("dev")):
        assert [e for e in examples if bare(e.messages[-1]["content"]) in trained] == []


def test_dev_and_held_out_share_no_sentence():
    texts = [
        {bare(e.messages[-1]["content"]) for e in part} for part in (task.dev(), task.held_out())
    ]
    assert not texts[0] & texts[1]


def test_combinations_of_two_or_more_values_belong_to_one_split(train_samples):
    for sample in train_samples:
        assert combination_split(sample.fields) in (None, "train")
    rng = random.Random(5)
    for index in range(len(pools.ALL_FORMS)):
        for split in ("dev", "held"):
            kind = "command" if g.form_pool(index, split, "command") else "new-word"
            found = g.command_sample(index, split, rng, kind)
            assert combination_split(found.fields) in (None, split)


def test_unseen_names_never_occur_in_training(train_samples):
    said = {
        word
        for sample in train_samples
        for word in re.findall(r"[a-z0-9']+", f"{sample.text} {sample.answer}".lower())
    }
    assert not said & unseen_words()
    in_wordings = {
        word for _, _, wording in all_wordings() for word in re.findall(r"[a-z]+", wording.lower())
    }
    assert not in_wordings & unseen_words()


def test_every_unseen_name_has_a_word_of_its_own():
    for names in (
        words.UNSEEN_ROOMS,
        words.UNSEEN_DEVICES,
        words.UNSEEN_PERSONS,
        words.UNSEEN_LABELS,
        words.UNSEEN_SCENES,
        words.UNSEEN_ITEMS,
        words.UNSEEN_MEDIA,
        words.UNSEEN_OBJECTS,
    ):
        for name in names:
            assert set(name.split()) & unseen_words(), name


def test_unseen_examples_contain_an_unseen_word():
    examples = [e for e in task.held_out() if e.kind == "unseen-name"]
    assert len(examples) > 200
    for example in examples:
        assert (
            set(re.findall(r"[a-z0-9]+", example.messages[-1]["content"].lower())) & unseen_words()
        )


def test_wordings_are_dealt_by_hash_not_by_order():
    texts = [f"wording number {n}" for n in range(20)]
    held = wordings_of(texts, "held")
    assert held == wordings_of(list(reversed(texts)), "held")[::-1]
    assert len(held) == 3 and len(wordings_of(texts, "dev")) == 2


def test_every_extra_wording_belongs_to_a_form_or_topic():
    forms = {pools.form_id(index) for index in range(len(pools.ALL_FORMS))}
    assert set(EXTRA) == forms
    assert set(EXTRA_PLAIN) == {topic.wordings[0] for topic in plain.TOPICS}


def test_the_line_between_known_and_new_words_is_mechanical():
    taught = defaultdict(set)
    for split, meaning, wording in all_wordings():
        if split == "train":
            for reading in expand(wording):
                taught[meaning] |= set(reading.split())
    everything = set().union(*taught.values())
    for example in task.held_out():
        if example.kind in ("command", "plain"):
            for reading in expand(example.wording):
                assert set(re.findall(r"[\w'{}-]+", reading)) <= everything, reading
    assert {e.kind for e in task.new_words()} == {"new-word"}
    known = {e.wording for e in task.held_out()}
    assert not known & {e.wording for e in task.new_words()}


def test_most_held_out_wordings_are_scored_as_commands_or_plain():
    parts = [
        (pools.form_wordings, pools.form_has_new_word, len(pools.ALL_FORMS)),
        (pools.topic_wordings, pools.topic_has_new_word, len(plain.TOPICS)),
    ]
    for wordings, has_new_word, n in parts:
        held = [has_new_word(index, text) for index in range(n) for text in wordings(index, "held")]
        assert sum(held) < 0.25 * len(held)
