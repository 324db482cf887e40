"""The table of spellings against the boards that it names."""

from __future__ import annotations

import pytest

from boardfit.device_profiles.catalog import shipped_profiles
from boardfit.device_profiles.spellings import BoardNames, find_profiles, plain_name, spellings

# Profiles of a class of boards or of a chip: no single board is meant, so none names itself so.
CLASSES = ("phone-", "-reference")


def test_every_entry_names_shipped_boards() -> None:
    named = {name for entry in spellings() for name in entry.profiles}
    assert named <= set(shipped_profiles())


def test_every_board_can_be_recognized() -> None:
    named = {name for entry in spellings() for name in entry.profiles}
    boards = {n for n in shipped_profiles() if not n.startswith("phone-") and CLASSES[1] not in n}
    assert boards <= named


def test_patterns_are_written_as_texts_are_compared() -> None:
    for entry in spellings():
        for name in entry.names:
            plain = name.replace("*", "").strip()
            assert plain_name(plain) == plain, name
        for text in (*entry.compatible, *entry.cpus):
            assert text == text.lower()


@pytest.mark.parametrize("profile", sorted(shipped_profiles()))
def test_the_name_of_a_profile_finds_it(profile: str) -> None:
    """`Radxa ROCK 5B, 8 GB`: what is before the comma is what a board would write."""
    if "reference" in profile or profile.startswith(("phone", "n1", "orange-pi-5")):
        return
    name = shipped_profiles()[profile].name.partition(",")[0].partition(" (")[0]
    assert profile in find_profiles(BoardNames((name,)))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Raspberry Pi 4 Model B Rev 1.5", "raspberry pi 4 model b"),
        ("Xunlong Orange Pi 3B v2.1", "xunlong orange pi 3b"),
        ("Radxa ROCK 5B+", "radxa rock 5b+"),
        ("SM-S928B", "sm s928b"),
    ],
)
def test_revisions_and_punctuation_do_not_count(text: str, plain: str) -> None:
    assert plain_name(text) == plain
