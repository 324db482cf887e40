"""The conversations that ship with the sample model: frozen, letter for letter."""

from __future__ import annotations

import hashlib
import json

import pytest

from boardfit.converters.sample.examples import ExampleSet, read_conversations

# Of the conversations as JSON, as the generator made them before they were frozen.
SHA256: dict[ExampleSet, str] = {
    "calibration": "6916cdbccabf3811a36f75cb2bf55f747e9dbe9631346b23700009b203a7f513",
    "quality": "400d6b4eb4a9671d847b28f6faffbf91466d0347f4a5e0d537072d41bdfc308d",
    "task": "81b5306f5b0bbf1975b487933f3022c4e016b7b6fc23c2a14103a012633e7a18",
}


@pytest.mark.parametrize("name", SHA256)
def test_conversations_are_the_same_for_ever(name: ExampleSet) -> None:
    talks = [[turn.to_dict() for turn in talk] for talk in read_conversations(name)]
    written = json.dumps(talks, ensure_ascii=False)
    assert hashlib.sha256(written.encode()).hexdigest() == SHA256[name]


@pytest.mark.parametrize("name", SHA256)
def test_every_conversation_ends_with_an_answer(name: ExampleSet) -> None:
    for talk in read_conversations(name):
        roles = [turn.role for turn in talk if turn.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
