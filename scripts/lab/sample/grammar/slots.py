"""Slot values: a surface form ("half past seven") and what it means ({"at": "07:30"}).

Open slots (rooms, devices, people, labels) are often filled with invented words, because a model
that has met a thousand nonsense names has to learn to copy, and copying is what an owner's own
names need.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lab.sample.grammar import words as w
from lab.sample.grammar.pattern import expand
from lab.sample.grammar.pools import ALL_FORMS, extra_wordings, form_wordings


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONSETS = _words(
    "b br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sk sl sm sn "
    "sp st str sw t th tr v w wh y z"
)
_NUCLEI = _words("a e i o u ai ea ee ie oo ou au y io ia")
_CODAS = ("", "", "", *_words("b ck d g l ll m n nd ng nt p r rd rk rn s sh ss st t th x ve le"))
_LETTERS = "eeeaaaiioootttnnnrrrssslllcdmpuubghfvwykxjzq"


@dataclass(frozen=True)
class Lesson:
    """What a stretch of training dwells on; a later lesson is harder, see `generator.LESSONS`."""

    pseudo_share: float = 0.45
    compound_share: float = 0.0
    extra_wordings: bool = False
    # Compounds from the words of all training wordings, so that every word can also be copied.
    all_words: bool = False
    # Turns about the user's own name, before and after it was told; the rest ask for it.
    name_share: float = 0.04
    name_share_known: float = 0.04
    tell_share: float = 0.5
    tell_share_known: float = 0.5
    # Noise, more of it than the splits that are scored have; and the network's dropout meanwhile.
    typo_share: float = 0.05
    shout_share: float = 0.03
    dropout: float = 0.0


@dataclass
class Draw:
    """Where slot values come from: the random source, and whether names must be unseen ones."""

    rng: random.Random
    unseen: bool = False
    allow_pseudo: bool = True
    lesson: Lesson = Lesson()
    fields: dict[str, Any] = field(default_factory=dict)
    open_slots: int = 0


@cache
def seen_words() -> tuple[str, ...]:
    """Real words of training, longest first cut into fragments to build invented ones."""
    lists = (
        w.ROOMS,
        w.DEVICES,
        w.PERSONS,
        w.LABELS,
        w.SCENES,
        w.ITEMS,
        w.MEDIA,
        w.VERBS,
        w.OBJECTS,
        w.TASKS,
        w.NEWS,
        w.ADJECTIVES,
        w.PLACES,
        w.COLORS,
        w.DAYS,
        w.ONES,
        w.TENS,
    )
    found = {part for names in lists for name in names for part in name.split()}
    return tuple(sorted(word for word in found if len(word) >= 3 and word.isalpha()))


@cache
def training_words() -> tuple[str, ...]:
    """The words of every training wording and of the slot lists, three letters or more."""
    found = set(seen_words())
    for index in range(len(ALL_FORMS)):
        for wording in (*form_wordings(index, "train"), *extra_wordings(index)):
            found |= {word for reading in expand(wording) for word in reading.split()}
    return tuple(sorted(word for word in found if len(word) >= 3 and word.isalpha()))


@cache
def unseen_words() -> frozenset[str]:
    """Words that training must never contain, not even by an accident of invention."""
    lists = (
        w.UNSEEN_ROOMS,
        w.UNSEEN_DEVICES,
        w.UNSEEN_PERSONS,
        w.UNSEEN_LABELS,
        w.UNSEEN_SCENES,
        w.UNSEEN_ITEMS,
        w.UNSEEN_MEDIA,
        w.UNSEEN_OBJECTS,
    )
    parts = {part for names in lists for name in names for part in name.split()}
    return frozenset(parts - set(seen_words()) - {"the"})


def compound_word(rng: random.Random, source: tuple[str, ...]) -> str:
    """Two real words written as one, as in 'greenhouse': its parts are known, the whole is not."""
    while True:
        first, second = rng.choice(source), rng.choice(source)
        word = first + second
        if len(word) <= 13 and word not in unseen_words():
            return word


def pseudo_word(rng: random.Random) -> str:
    """An invented word of 3 to 11 letters: syllables, halves of real words, or raw letters."""
    while True:
        kind = rng.random()
        if kind < 0.45:
            n_syllables = rng.choice((1, 2, 2, 2, 3))
            word = "".join(
                rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS)
                for _ in range(n_syllables)
            )
        elif kind < 0.85:
            first, second = rng.choice(seen_words()), rng.choice(seen_words())
            word = first[: rng.randint(1, 5)] + second[-rng.randint(2, 5) :]
            if rng.random() < 0.3:
                word += rng.choice(_NUCLEI)
        else:
            word = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 8)))
        if 3 <= len(word) <= 11 and word not in unseen_words() and word not in _RESERVED:
            return word


# Invented words must not turn into words that steer the meaning of a sentence.
_RESERVED = frozenset(
    _words(
        "the and off out all for now per not one two six ten am pm set low fan door light lights "
        "lamp high room open lock list timer alarm play stop"
    )
)


def _name(draw: Draw, seen: tuple[str, ...], unseen: tuple[str, ...], two: float = 0.15) -> str:
    draw.open_slots += 1
    if draw.unseen:
        return draw.rng.choice(unseen)
    if draw.allow_pseudo and draw.rng.random() < draw.lesson.pseudo_share:
        compound = draw.lesson.compound_share
        if compound and draw.rng.random() < compound:
            source = training_words() if draw.lesson.all_words else seen_words()
            word = compound_word(draw.rng, source)
        else:
            word = pseudo_word(draw.rng)
        if draw.rng.random() < two:
            other = (
                pseudo_word(draw.rng) if draw.rng.random() < 0.5 else draw.rng.choice(seen_words())
            )
            word = f"{word} {other}" if draw.rng.random() < 0.7 else f"{other} {word}"
        return word
    return draw.rng.choice(seen)


def number_word(value: int) -> str:
    """English for 0..99, as spoken: 'twenty five'."""
    if value < 20:
        return w.ONES[value]
    tens, ones = divmod(value, 10)
    return w.TENS[tens] + (f" {w.ONES[ones]}" if ones else "")


def _number(rng: random.Random, value: int) -> str:
    spoken = rng.random() < 0.35 and value < 100
    return number_word(value) if spoken else str(value)


# --- one function per slot: surface out, meaning into draw.fields -------------------------------


def _room(draw: Draw) -> str:
    name = _name(draw, w.ROOMS, w.UNSEEN_ROOMS, 0.1)
    draw.fields["room"] = name
    return name


def _device(draw: Draw) -> str:
    name = _name(draw, w.DEVICES, w.UNSEEN_DEVICES, 0.4)
    draw.fields["device"] = name
    return name


def _person(draw: Draw) -> str:
    name = _name(draw, w.PERSONS, w.UNSEEN_PERSONS, 0.0)
    if draw.rng.random() < 0.4:
        name = name.capitalize()
    draw.fields["person"] = name
    return name


def _label(draw: Draw) -> str:
    draw.fields["name"] = _name(draw, w.LABELS, w.UNSEEN_LABELS)
    return str(draw.fields["name"])


def _scene(draw: Draw) -> str:
    draw.fields["name"] = _name(draw, w.SCENES, w.UNSEEN_SCENES)
    return str(draw.fields["name"])


def _item(draw: Draw) -> str:
    draw.fields["item"] = _name(draw, w.ITEMS, w.UNSEEN_ITEMS, 0.3)
    return str(draw.fields["item"])


def _media(draw: Draw) -> str:
    draw.fields["what"] = _name(draw, w.MEDIA, w.UNSEEN_MEDIA, 0.5)
    return str(draw.fields["what"])


def _object(draw: Draw) -> str:
    return _name(draw, w.OBJECTS, w.UNSEEN_OBJECTS, 0.1)


def _task(draw: Draw) -> str:
    rng = draw.rng
    kind = 0.9 if draw.unseen else rng.random()
    if kind < 0.25:
        text = rng.choice(w.TASKS)
        draw.open_slots += 1
    elif kind < 0.4:
        text = f"call {_name(draw, w.PERSONS, w.UNSEEN_PERSONS, 0.0)}"
    else:
        article = rng.choice(("the ", "the ", "my ", "", "a "))
        text = f"{rng.choice(w.VERBS)} {article}{_object(draw)}"
    draw.fields["text"] = text
    return text


def _news(draw: Draw) -> str:
    rng = draw.rng
    if not draw.unseen and rng.random() < 0.4:
        text = rng.choice(w.NEWS)
        draw.open_slots += 1
    else:
        text = f"the {_object(draw)} is {rng.choice(w.ADJECTIVES)}"
    draw.fields["text"] = text
    return text


def _door(draw: Draw) -> str:
    draw.fields["door"] = draw.rng.choice(w.DOORS)
    return str(draw.fields["door"])


def _floor(draw: Draw) -> str:
    draw.fields["room"] = draw.rng.choice(("upstairs", "downstairs", "outside"))
    return str(draw.fields["room"])


def _onoff(draw: Draw) -> str:
    draw.fields["state"] = draw.rng.choice(("on", "off"))
    return str(draw.fields["state"])


def _color(draw: Draw) -> str:
    draw.fields["color"] = draw.rng.choice(w.COLORS)
    return str(draw.fields["color"])


def _speed(draw: Draw) -> str:
    draw.fields["speed"] = draw.rng.choice(("low", "medium", "high"))
    return str(draw.fields["speed"])


def _place(draw: Draw) -> str:
    if draw.rng.random() < 0.5:
        return pseudo_word(draw.rng)
    return draw.rng.choice(w.PLACES)


_SPECIAL_LEVELS = (
    ("half", 50),
    ("full", 100),
    ("a quarter", 25),
    ("maximum", 100),
    ("three quarters", 75),
    ("the maximum", 100),
    ("a third", 33),
)


def _level(draw: Draw) -> str:
    rng = draw.rng
    kind = rng.random()
    if kind < 0.12:
        surface, value = rng.choice(_SPECIAL_LEVELS)
        draw.fields["level"] = value
        return surface
    value = rng.choice((rng.randrange(5, 101, 5), rng.randrange(10, 100, 10), rng.randint(1, 100)))
    draw.fields["level"] = value
    number = _number(rng, value)
    return number + rng.choice((" percent", " percent", "" if number.isalpha() else "%", ""))


def _temp(draw: Draw) -> str:
    rng = draw.rng
    value = rng.randint(5, 30)
    if rng.random() < 0.2:
        draw.fields["temp_c"] = value + 0.5
        if rng.random() < 0.3:
            return f"{number_word(value)} and a half degrees"
        return f"{value}.5" + rng.choice((" degrees", "", " °C"))
    draw.fields["temp_c"] = value
    number = _number(rng, value)
    return number + rng.choice(
        (" degrees", " degrees", "", "" if number.isalpha() else "°C", " degrees celsius")
    )


_SPECIAL_DURATIONS = (
    ("half an hour", 1800),
    ("an hour", 3600),
    ("a minute", 60),
    ("an hour and a half", 5400),
    ("a quarter of an hour", 900),
    ("one and a half hours", 5400),
    ("two and a half hours", 9000),
    ("three quarters of an hour", 2700),
    ("half a minute", 30),
    ("two minutes and a half", 150),
)


def duration(rng: random.Random) -> tuple[str, int]:
    """A surface form and its seconds, from 5 seconds to 12 hours."""
    kind = rng.random()
    if kind < 0.13:
        return rng.choice(_SPECIAL_DURATIONS)
    if kind < 0.25:
        value = rng.choice((5, 10, 15, 20, 25, 30, 40, 45, 50, 60, 90))
        return f"{_number(rng, value)} {rng.choice(('seconds', 'seconds', 'sec', 's'))}", value
    if kind < 0.8:
        value = rng.choice((rng.randint(1, 60), rng.choice((5, 10, 15, 20, 30, 45, 75, 90))))
        unit = "minute" if value == 1 else rng.choice(("minutes", "minutes", "minutes", "min"))
        return f"{_number(rng, value)} {unit}", value * 60
    if kind < 0.93:
        value = rng.randint(1, 12)
        unit = "hour" if value == 1 else "hours"
        return f"{_number(rng, value)} {unit}", value * 3600
    hours, minutes = rng.randint(1, 3), rng.choice((5, 10, 15, 20, 30, 40, 45))
    unit = "hour" if hours == 1 else "hours"
    joint = rng.choice((" and ", " "))
    surface = f"{_number(rng, hours)} {unit}{joint}{_number(rng, minutes)} minutes"
    return surface, hours * 3600 + minutes * 60


def clock(rng: random.Random) -> tuple[str, str]:
    """A time of day as said, and as HH:MM. A bare hour is read on the 24 hour clock."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice((("noon", "12:00"), ("midnight", "00:00"), ("midday", "12:00")))
    hour = rng.randint(0, 23)
    minute = rng.choice((0, 0, 15, 30, 45, rng.randrange(0, 60, 5), rng.randint(0, 59)))
    value = f"{hour:02d}:{minute:02d}"
    hour12 = hour % 12 or 12
    half = "am" if hour < 12 else "pm"
    if kind < 0.3:
        return f"{hour}:{minute:02d}" if rng.random() < 0.6 else value, value
    if kind < 0.5:
        gap = rng.choice((" ", " ", ""))
        return f"{hour12}:{minute:02d}{gap}{half}", value
    if kind < 0.72:
        gap = rng.choice((" ", " ", ""))
        return f"{_number(rng, hour12)} {half}" if gap else f"{hour12}{half}", f"{hour:02d}:00"
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    if kind < 0.82 and 4 <= hour <= 22:
        return f"{_number(rng, hour12)} {part}", f"{hour:02d}:00"
    if kind < 0.92:
        hour = rng.randint(1, 12)
        word = _number(rng, hour)
        phrase, minutes = rng.choice(
            (
                ("half past", 30),
                ("quarter past", 15),
                ("quarter to", -15),
                ("ten past", 10),
                ("ten to", -10),
                ("five past", 5),
            )
        )
        total = hour * 60 + minutes
        return f"{phrase} {word}", f"{total // 60 % 24:02d}:{total % 60:02d}"
    word = _number(rng, hour)
    return word + rng.choice(("", " o'clock")), f"{hour:02d}:00"


def _duration(draw: Draw) -> str:
    surface, draw.fields["in_s"] = duration(draw.rng)
    return surface


def _clock(draw: Draw) -> str:
    surface, draw.fields["at"] = clock(draw.rng)
    return surface


def _day(draw: Draw) -> str:
    day = draw.rng.choice(w.DAYS)
    draw.fields["day"] = day
    return day if day in ("today", "tomorrow") else f"on {day}"


def _moment(draw: Draw) -> str:
    """A point in time with a clock: 'at 8', 'tomorrow at half past six', 'at 7 am on monday'."""
    at = f"at {_clock(draw)}"
    if draw.rng.random() < 0.5:
        return at
    day = _day(draw)
    if (
        day == "tomorrow"
        and "morning" not in at
        and draw.fields["at"] < "12"
        and draw.rng.random() < 0.2
    ):
        day = "tomorrow morning"
    return f"{day} {at}" if draw.rng.random() < 0.7 else f"{at} {day}"


def _when(draw: Draw) -> str:
    if draw.rng.random() < 0.5:
        return _moment(draw)
    surface = _duration(draw)
    return draw.rng.choice(
        (f"in {surface}", f"in {surface}", f"after {surface}", f"{surface} from now")
    )


SLOTS = {
    "room": _room,
    "device": _device,
    "person": _person,
    "label": _label,
    "scene": _scene,
    "item": _item,
    "media": _media,
    "task": _task,
    "news": _news,
    "door": _door,
    "floor": _floor,
    "onoff": _onoff,
    "color": _color,
    "speed": _speed,
    "place": _place,
    "level": _level,
    "temp": _temp,
    "duration": _duration,
    "clock": _clock,
    "day": _day,
    "moment": _moment,
    "when": _when,
}
OPEN_SLOTS = frozenset(
    ("room", "device", "person", "label", "scene", "item", "media", "task", "news")
)
