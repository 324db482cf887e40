"""Conversations of the sample model's world, frozen as data.

Each line of a file is a JSON list with the texts of one conversation. User and assistant take
turns. An odd number of texts begins with the system message. `scripts/lab/sample/freeze.py` wrote
the files.
"""

import json
from pathlib import Path
from typing import Literal

from boardfit.edge.types import Message, Role

#: `quality` and `task` measure the sample model: requests that training does not show.
#: `calibration` is for recipes that round by a text.
ExampleSet = Literal["calibration", "quality", "task"]
Conversation = tuple[Message, ...]

#: An answer of the sample model is never longer.
MAX_NEW_TOKENS = 80

_ROLES: tuple[Role, ...] = ("assistant", "user")


def read_conversations(name: ExampleSet) -> tuple[Conversation, ...]:
    """Read every conversation of a set, in the order of the file."""
    text = (Path(__file__).parent / f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(_read_turns(json.loads(line)) for line in text.splitlines())


def _read_turns(texts: list[str]) -> Conversation:
    n_turns = len(texts) // 2
    system = [Message("system", texts[0])] if len(texts) % 2 else []
    turns = [Message(_ROLES[i % 2], text) for i, text in enumerate(texts[-2 * n_turns :], start=1)]
    return (*system, *turns)
