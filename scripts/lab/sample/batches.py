"""Training rows: conversations packed to a fixed length, with the answers marked as targets.

A batch depends on the seed and the step number alone, so a resumed run sees the same data.
"""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lab.sample.chat_format import END_OF_TEXT, render_message
from lab.sample.generator import LESSONS, conversation
from lab.sample.grammar.slots import Lesson

SHORT_ROWS = (16, 256)
LONG_ROWS = (4, 1024)
LONG_EVERY = 12
# A lesson starts at its step.
LESSON_STEPS = (0, 800, 1450, 3250)
_TURNS = (1, 1, 2, 3, 4, 5, 6)


def lesson_at(step: int) -> Lesson:
    """The lesson that a step belongs to."""
    return LESSONS[sum(step >= first for first in LESSON_STEPS) - 1]


def encode_conversation(
    tokenizer: Tokenizer, rng: random.Random, n_turns: int, step: int
) -> tuple[list[int], list[bool]]:
    """Token ids of one conversation, and which of them the model has to say itself."""
    ids: list[int] = []
    said: list[bool] = []
    lesson = lesson_at(step)
    for message in conversation(rng, n_turns, lesson):
        part = tokenizer.encode(render_message(message), add_special_tokens=False).ids
        head = 0
        if message["role"] == "assistant":
            head = len(tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False).ids)
        # The answer and its <|im_end|> are targets; the markers before and the newline are not.
        mine = message["role"] == "assistant"
        ids += part
        said += [mine and head <= n < len(part) - 1 for n in range(len(part))]
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None, "the tokenizer of this run has no end-of-text token"
    ids.append(end)
    said.append(False)
    return ids, said


def batch(tokenizer: Tokenizer, seed: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and target mask of one step, each (rows, length)."""
    rng = random.Random(f"{seed}/{step}")
    long = step % LONG_EVERY == LONG_EVERY - 1
    n_rows, length = LONG_ROWS if long else SHORT_ROWS
    rows, masks = [], []
    for _ in range(n_rows):
        ids: list[int] = []
        said: list[bool] = []
        while len(ids) <= length:
            n_turns = rng.randint(4, 30) if long else rng.choice(_TURNS)
            more_ids, more_said = encode_conversation(tokenizer, rng, n_turns, step)
            ids += more_ids
            said += more_said
        rows.append(ids[: length + 1])
        masks.append(said[: length + 1])
    tokens, mask = torch.tensor(rows), torch.tensor(masks)
    return tokens[:, :-1], tokens[:, 1:], mask[:, 1:]
