"""Describe a question to a deadline: its messages, and how to render them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from boardfit.edge.types import AnswerFilter, Message


@dataclass(frozen=True)
class Question:
    """What a session asks. The last of its `messages` may be longer than the context.

    `render` makes token ids of messages, of which a prompt may have `room`. `filter_answer` makes
    the filter of thinking for the answer to messages. `check_room` raises InputError for a prompt
    that fills the context. `is_chat`: there is a chat template.
    `n_restored` tokens were read into the KV cache for it, in `restored_s` seconds.
    """

    messages: Sequence[Message]
    render: Callable[[list[Message]], list[int]]
    filter_answer: Callable[[Sequence[Message]], AnswerFilter]
    check_room: Callable[[Sequence[int]], None]
    room: int
    n_forgotten: int
    is_chat: bool
    n_restored: int
    restored_s: float
