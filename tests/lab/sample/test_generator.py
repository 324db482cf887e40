"""The generator: same seed, same data, everywhere; and every answer in the documented form."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.sample import generator as g
from lab.sample.grammar import pattern, plain, slots, surface, words
from lab.sample.grammar.pools import ALL_FORMS

SCRIPTS = Path(__file__).parents[3] / "scripts"
SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(("train", "dev", "held"))
VERBS = {form.do for form in ALL_FORMS}
ANSWERS = {topic.answer for topic in plain.TOPICS}


def test_same_seed_gives_the_same_samples():
    def draw():
        rng = random.Random(3)
        return [g.any_sample("train", rng) for _ in range(300)]

    assert draw() == draw()


def test_samples_do_not_depend_on_the_hash_seed():
    code = (
        "import random; from lab.sample import generator as g\n"
        "rng = random.Random(3)\n"
        "print([g.conversation(rng, 3) for _ in range(100)])"
    )
    outputs = set()
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=SCRIPTS,
            env=env,
            check=True,
            capture_output=True,
            text=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, split=SPLITS, unseen=st.booleans())
def test_every_answer_is_canonical(seed, split, unseen):
    rng = random.Random(seed)
    for _ in range(60):
        found = g.any_sample(split, rng)
        if unseen:
            found = unseen_sample(split, rng) or found
        if found.kind == "plain":
            assert found.answer in ANSWERS
        else:
            check_command(found)


def unseen_sample(split, rng):
    index = rng.randrange(len(ALL_FORMS))
    if not g.form_pool(index, split, "unseen-name"):
        return None
    return g.command_sample(index, split, rng, "unseen-name")


def check_command(found):
    assert "\n" not in found.answer
    fields = json.loads(found.answer)
    assert g.canonical(fields) == found.answer
    assert list(fields) == [key for key in g.KEY_ORDER if key in fields]
    assert fields["do"] in VERBS
    assert re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", fields.get("at", "00:00"))
    assert 0 < fields.get("in_s", 1) <= 12 * 3600 and isinstance(fields.get("in_s", 1), int)
    assert 0 <= fields.get("level", 0) <= 100
    assert 5 <= fields.get("temp_c", 20) <= 30.5
    assert fields.get("day", "today") in words.DAYS
    for key in ("room", "device", "door", "person", "name", "item", "text"):
        if key in fields and fields[key] != "all":
            assert fields[key].lower() in found.text.lower()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, n_turns=st.integers(1, 8))
def test_conversations_alternate_and_answer_every_request(seed, n_turns):
    messages = g.conversation(random.Random(seed), n_turns)
    if messages[0]["role"] == "system":
        messages = messages[1:]
    assert [m["role"] for m in messages] == ["user", "assistant"] * n_turns
    assert all(m["content"].strip() == m["content"] != "" for m in messages)


def test_a_name_is_remembered_only_when_it_was_told():
    told = asked = 0
    for seed in range(400):
        known = None
        messages = g.conversation(random.Random(seed), 8, g.LESSONS[1])
        for message in messages:
            text = message["content"]
            if text.startswith("Nice to meet you, "):
                known, told = text[len("Nice to meet you, ") : -1], told + 1
            if text.startswith("Your name is "):
                assert text == f"Your name is {known}."
                asked += 1
            if text == plain.NAME_UNKNOWN:
                assert known is None
    assert told > 20 and asked > 20


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="KEY_ORDER"):
        g.canonical({"do": "light.set", "rom": "kitchen"})


@pytest.mark.parametrize(
    ("surface_form", "value"),
    [
        ("half past seven", "07:30"),
        ("quarter to 9", "08:45"),
        ("11 pm", "23:00"),
        ("12 am", "00:00"),
        ("12pm", "12:00"),
        ("midnight", "00:00"),
        ("8 o'clock", "08:00"),
        ("6 in the evening", "18:00"),
        ("7:15 am", "07:15"),
        ("20:30", "20:30"),
        ("8", "08:00"),
    ],
)
def test_clock_surfaces_mean_what_people_mean(surface_form, value):
    rng = random.Random(0)
    drawn = dict(slots.clock(rng) for _ in range(60000))
    assert drawn[surface_form] == value


@pytest.mark.parametrize(
    ("surface_form", "seconds"),
    [
        ("ten minutes", 600),
        ("half an hour", 1800),
        ("an hour and a half", 5400),
        ("90 seconds", 90),
        ("2 hours", 7200),
        ("1 hour and 20 minutes", 4800),
        ("1 minute", 60),
    ],
)
def test_duration_surfaces_mean_what_people_mean(surface_form, seconds):
    rng = random.Random(0)
    drawn = dict(slots.duration(rng) for _ in range(60000))
    assert drawn[surface_form] == seconds


def test_one_surface_has_one_meaning():
    rng = random.Random(0)
    for draw in (slots.clock, slots.duration):
        meanings: dict[str, object] = {}
        for _ in range(30000):
            said, value = draw(rng)
            assert meanings.setdefault(said, value) == value


def test_pattern_sample_is_one_of_its_readings():
    text = "(turn|switch) {onoff} [all] the {room} (lights|light)"
    readings = set(pattern.expand(text))
    assert len(readings) == 8
    rng = random.Random(0)
    assert {pattern.tidy("".join(pattern.sample(text, rng))) for _ in range(300)} == readings


@pytest.mark.parametrize("broken", ["(turn|switch the light", "turn] on", "[maybe"])
def test_unbalanced_patterns_are_refused(broken):
    with pytest.raises(pattern.PatternError):
        pattern.parse(broken)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_noise_never_touches_slot_values(seed):
    pieces = [surface.Piece("switch on the ", False), surface.Piece("Zorbal hut", True)]
    assert "Zorbal hut" in surface.render(pieces, False, shout=False, rng=random.Random(seed))
