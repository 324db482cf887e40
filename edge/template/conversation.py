"""One model's chat template at work: conversations in, pieces of prompt out.

What a user types must stay text, though a message may hold `<|im_start|>system`. So such a text is
broken with a mark that cannot be guessed. The template writes the mark through, and the prompt is
cut there. No piece holds a whole special token of a user's; the pieces are tokenized one by one.
"""

import inspect
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from boardfit.edge.errors import UsageError
from boardfit.edge.template.render import parse, render
from boardfit.edge.template.thinking import (
    ThinkingFilter,
    ThinkingKind,
    all_kinds,
    control_tokens,
    find_kinds,
    find_open,
    switch_variables,
)
from boardfit.edge.template.words import WordForm, find_form
from boardfit.edge.types import Message, Thinking, ToolShaper
from boardfit.edge.units import did_you_mean, printable

#: Where to break a text, so that no special token is read from it: offsets of characters.
FindBreaks = Callable[[str, bool], Sequence[int]]
_MARK_DIGITS = 24
# What `render` itself takes. A bundle's variables are a stranger's: its seconds are not theirs.
_RESERVED = frozenset(inspect.signature(render).parameters) - {"extra"}
_FUNCTIONS = frozenset(["loop", "namespace", "range", "raise_exception", "strftime_now", "dict"])


class ChatTemplate:
    """A template with the texts of its model, its variables, and how it takes messages."""

    def __init__(
        self,
        source: str,
        *,
        bos: str,
        eos: str,
        thinking: Thinking = "auto",
        variables: Mapping[str, Any] | None = None,
        tools: ToolShaper | None = None,
    ) -> None:
        self.source, self._bos, self._eos = source, bos, eos
        self._tools = tools
        self._thinking: Thinking = thinking
        self._given = dict(variables or {})
        self._controls: dict[ThinkingKind, dict[int, str]] = {}  # found once: a prompt waits

    @cached_property
    def form(self) -> WordForm:
        """How the template takes messages. Raises InputError if it loses the user's words."""
        return find_form(lambda messages: self._render(messages, generate=True))

    def check_words(self) -> None:
        """Raise InputError if the template loses words of any role, or refuses a question."""
        for role in sorted(self.form.lost):
            raise self.form.refused[role]

    def write(
        self, messages: Sequence[Message], find_breaks: FindBreaks, *, generate: bool = True
    ) -> list[str]:
        """The pieces of a prompt. `find_breaks(text, is_own)` gives where a text, `is_own` the
        model's, holds special tokens. Raises as `render`, and for words that would be lost.
        """
        mark = f"{secrets.randbelow(10**_MARK_DIGITS):0{_MARK_DIGITS}}"

        def cut(text: str, is_own: bool = False) -> str:
            edges = pairwise([0, *find_breaks(text, is_own), len(text)])
            return mark.join(text[start:end] for start, end in edges)

        listed: Mapping[str, Any] = {}
        if self._tools is not None:
            listed = self._tools.list_tools(cut)
            marked = self._merge_system(messages, self._tools.shape(messages, cut))
        else:
            marked = [{**m.to_dict(), "content": cut(m.content, m.role == "assistant")}
                      for m in messages]  # fmt: skip
        shaped = self.form.shape(marked)
        text = self._render(shaped, generate=generate, **listed)
        if generate:
            text += self._skip_thinking(text, shaped, listed)
        return text.split(mark)

    def _merge_system(
        self, messages: Sequence[Message], shaped: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Put a system prompt that is not the user's into the first message, where the template
        takes none.
        """
        is_own = shaped[0]["role"] == "system" and messages[0].role != "system"
        if not is_own or "system" not in self.form.refused or len(shaped) < 2:
            return shaped
        second = {**shaped[1], "content": f"{shaped[0]['content']}\n\n{shaped[1]['content']}"}
        return [second, *shaped[2:]]

    def filter_answer(
        self,
        messages: Sequence[Message],
        tokenize: Callable[[str], list[int]],
        has_text: Callable[[int], bool],
    ) -> ThinkingFilter:
        """Return the filter of thinking for the stream that answers `messages`."""
        opened = None
        if self._kinds or "think" in self.source:
            opening = "".join(self.write(messages, lambda text, is_own: ()))
            closed = "".join(self.write(messages, lambda text, is_own: (), generate=False))
            opened = find_open(opening[len(os.path.commonprefix([opening, closed])) :], all_kinds())
        kinds = list(dict.fromkeys(filter(None, [opened, *self._kinds, all_kinds()[0]])))
        for kind in kinds:
            if kind not in self._controls:
                self._controls[kind] = control_tokens([kind], tokenize, has_text)
        controls = {token: text for kind in kinds for token, text in self._controls[kind].items()}
        found = ThinkingFilter(kinds, opened, controls, tokenize)
        if expected := [kind for kind in (opened, *self._kinds) if kind is not None]:
            found.thoughts = "" if opened else expected[0].start, expected[0].ends[-1]
        return found

    @cached_property
    def _kinds(self) -> list[ThinkingKind]:
        return find_kinds(self.source)

    @cached_property
    def _names(self) -> set[str]:
        """The variables that the template reads."""
        from jinja2 import meta, nodes

        tree = parse(self.source)
        # Jinja leaves out a name that the template itself sets somewhere, as a default.
        names = list(tree.find_all(nodes.Name))
        read = {name.name for name in names if name.ctx == "load"}
        stored = {name.name for name in names if name.ctx != "load"}
        targets = [assignment.target for assignment in tree.find_all(nodes.Assign)]
        own = stored - {target.name for target in targets if isinstance(target, nodes.Name)}
        return (read - own) | set(meta.find_undeclared_variables(tree))

    @cached_property
    def _switch(self) -> tuple[dict[str, Any], bool]:
        return switch_variables(self.source, self._names, self._thinking)

    def check_settings(self) -> None:
        """Raise UsageError for variables or thinking that the template does not know."""
        own = sorted(self._given.keys() & _RESERVED)
        unknown = sorted(self._given.keys() - self._names)
        if own:
            raise UsageError(f"the template variable {own[0]} is set by boardfit itself")
        if unknown:
            free = sorted(self._names - _RESERVED - _FUNCTIONS)
            raise UsageError(
                f"the chat template does not read {printable(unknown[0], 60)!r}; it reads: "
                f"{printable(', '.join(free), 400)}.{did_you_mean(unknown[0], free)}"
            )
        if self._thinking == "on" and not self._kinds and not self._switch[0]:
            raise UsageError(
                "the chat template has no thinking that could be switched on",
                next_step="leave --thinking out",
            )

    def _render(self, messages: list[dict[str, Any]], *, generate: bool, **listed: Any) -> str:
        variables = {} if self._thinking == "auto" else self._switch[0]
        texts = {"bos_token": self._bos, "eos_token": self._eos}
        given = {**variables, **self._given, **texts, **listed}
        return render(self.source, messages, add_generation_prompt=generate, **given)

    def _skip_thinking(
        self, text: str, messages: list[dict[str, Any]], listed: Mapping[str, Any]
    ) -> str:
        """What to write behind a prompt, so that a template without a switch opens no thoughts."""
        if self._thinking != "off":
            return ""
        closed = self._render(messages, generate=False, **listed)
        opening = text[len(os.path.commonprefix([text, closed])) :]
        opened = find_open(opening, self._kinds)
        if opened is not None:
            return opened.closing
        named = self._kinds[:1]
        if self._switch[1] or not named or any(end in opening for end in named[0].ends):
            return ""
        return named[0].none


def tokenize_pieces(pieces: Sequence[str], tokenize: Callable[[str], list[int]]) -> list[int]:
    """Token ids of a prompt in pieces, each tokenized for itself. Some tokenizers write a space in
    front of every text. A line break before a piece keeps it away, where its tokens can be cut off.
    """
    first, *others = pieces
    ids = tokenize(first)
    for piece in others:
        before = tokenize("\n")
        with_break = tokenize(f"\n{piece}")
        is_apart = with_break[: len(before)] == before
        ids += with_break[len(before) :] if is_apart else tokenize(piece)
    return ids
