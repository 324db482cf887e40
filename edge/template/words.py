"""Check that a chat template writes the words of each message: every word, once, in order.

Marker words go through the template: one that comes out nowhere would be lost without a sign.
Templates that want content as a list of parts, as models with vision have it, are rendered so.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from boardfit.edge.errors import InputError, UnsafeInputError

Conversation = Sequence[Mapping[str, Any]]
Render = Callable[[list[dict[str, Any]]], str]

# No template contains them, and they survive a change of case.
_QUESTION, _ANSWER, _AGAIN, _RULES = "question7351", "answer7352", "again7353", "rules7354"
_ONE: Conversation = ({"role": "user", "content": _QUESTION},)
_TWO: Conversation = (
    *_ONE,
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _AGAIN},
)
_RULED: Conversation = ({"role": "system", "content": _RULES}, *_ONE)
_NAMES = {"user": "user's words", "assistant": "assistant's answer", "system": "system prompt"}
_NEXT = {
    "system": "leave the system prompt out, or put its text in front of the message",
    "assistant": "ask one question at a time: edge run",
}
_LIST_TRACES = ("'type':", '"type":')


@dataclass(frozen=True)
class WordForm:
    """How a template takes messages. Content of the roles in `parts` is a list of parts. `refused`
    holds the errors of roles that it does not take; those in `lost` lose their words.
    """

    parts: frozenset[str] = frozenset()
    refused: Mapping[str, InputError] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()

    def shape(self, messages: Conversation) -> list[dict[str, Any]]:
        """`messages` as the template takes them. Raises InputError for a role that it refuses."""
        for message in messages:
            if (error := self.refused.get(message["role"])) is not None:
                raise InputError(str(error), next_step=error.next_step or _NEXT[message["role"]])
        return self.as_parts(messages)

    def as_parts(self, messages: Conversation) -> list[dict[str, Any]]:
        """`messages` with content as the template wants it, whether it takes their roles or not."""
        return _shape(messages, self.parts)


def find_form(render: Render) -> WordForm:
    """How the template behind `render` takes messages. Raises InputError for one that loses the
    user's words or refuses a question, UnsafeInputError for one that the sandbox stops.
    """
    begin: Conversation = ()
    user = _try_role(render, "user", _ONE, frozenset())
    if isinstance(user, _Failure) and not user.is_loss:  # it may insist on a system prompt
        begin = _RULED[:1]
        for parts in (frozenset({"system"}), frozenset[str]()):
            ruled = _try_role(render, "user", _RULED, parts)
            if not isinstance(ruled, _Failure):
                user = ruled
                break
    if isinstance(user, _Failure):
        raise user.error
    parts, refused, lost = user, dict[str, InputError](), set[str]()
    for role, talk in (("system", _RULED), ("assistant", (*begin, *_TWO))):
        found = _try_role(render, role, talk, parts)
        if isinstance(found, _Failure):
            refused[role] = found.error
            if found.is_loss:
                lost.add(role)
        else:
            parts = found
    return WordForm(parts, refused, frozenset(lost))


@dataclass(frozen=True)
class _Failure:
    error: InputError
    is_loss: bool


def _try_role(
    render: Render, role: str, talk: Conversation, parts: frozenset[str]
) -> frozenset[str] | _Failure:
    """The roles whose content is a list of parts so that all words come out, `role` decided."""
    failures = []
    for as_parts in (parts, parts | {role}):
        try:
            text = render(_shape(talk, as_parts))
        except UnsafeInputError:
            raise
        except InputError as error:
            failures.append(_Failure(error, is_loss=False))
            continue
        problem = _find_problem(text, talk)
        if problem is None:
            return as_parts
        loss = InputError(
            f"the chat template {problem}",
            next_step="correct chat_template: it must write every message's content once, in order",
        )
        failures.append(_Failure(loss, is_loss=True))
    # A template that refuses texts and loses parts means its refusal.
    return failures[0]


def _find_problem(text: str, talk: Conversation) -> str | None:
    """What is wrong with the words of a conversation in the text of its rendering."""
    text = text.casefold()
    for message in talk:
        n = text.count(message["content"])
        if n != 1:
            whose = _NAMES[message["role"]]
            return f"leaves out the {whose}" if n == 0 else f"writes the {whose} {n} times"
    if any(trace in text for trace in _LIST_TRACES):
        return "writes a list of parts as it is"
    # Some families put the system prompt into the latest question.
    turns = [message["content"] for message in talk if message["role"] != "system"]
    if any(text.index(a) > text.index(b) for a, b in itertools.pairwise(turns)):
        return "writes the messages in another order"
    return None


def _shape(messages: Conversation, parts: frozenset[str]) -> list[dict[str, Any]]:
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if message["role"] in parts
        else dict(message)
        for message in messages
    ]
