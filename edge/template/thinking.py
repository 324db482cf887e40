"""Separate a model's thinking from its answer, and switch thinking on or off, by the tables in
`names.toml`: what families write around their thoughts, and the variables that switch them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.types import AnswerFilter, Thinking, TokenEvent

_NAMES = ("boardfit.edge.template", "names.toml")
#: What `reasoning_effort` may be called where it is least; the first two switch thinking off.
_EFFORTS = ("none", "no_think", "minimal", "low")


@dataclass(frozen=True)
class ThinkingKind:
    """The markers of some families: what opens thoughts, what ends them, the text that stands for
    no thoughts at all, and `silent` ones around the answer, which are not part of it.
    """

    start: str
    ends: tuple[str, ...]
    none: str
    silent: tuple[str, ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> ThinkingKind:
        start, ends, between = row["start"], tuple(row["ends"]), row.get("between", "")
        none = row.get("none", f"{start}{between}{ends[0]}{between}")
        return cls(start, ends, none, tuple(row.get("silent", ())))

    @property
    def closing(self) -> str:
        """What is written behind thoughts to end them."""
        return f"\n{self.ends[-1]}\n\n" if self.none.endswith("\n") else self.ends[-1]


# Read when they are needed: a start without a conversation does not pay for them.


@functools.cache
def all_kinds() -> tuple[ThinkingKind, ...]:
    """The first is what models write whose template does not mention thinking."""
    return tuple(map(ThinkingKind.from_row, load_toml(*_NAMES)["kinds"]))


def switch_names() -> frozenset[str]:
    """Template variables that switch thinking."""
    return frozenset([*load_toml(*_NAMES)["switches"], "reasoning_effort"])


def find_kinds(template: str) -> list[ThinkingKind]:
    """The kinds that a template names."""

    def names(kind: ThinkingKind) -> bool:
        if kind.silent or _pieces(kind.start) != [kind.start]:
            # A template may put such markers together.
            pieces = _pieces(kind.start + kind.ends[-1])
            return all(piece in template for piece in pieces or [kind.start])
        return kind.start in template or kind.ends[-1] in template

    return list(filter(names, all_kinds()))


def switch_variables(
    template: str, names: Collection[str], thinking: Thinking
) -> tuple[dict[str, Any], bool]:
    """Variables that switch a template, which reads `names`, to `thinking`, and whether one of them
    is a real switch (an effort can often only be made small).
    """
    if thinking == "auto":
        return {}, True
    is_on = thinking == "on"
    switches = load_toml(*_NAMES)["switches"]
    found = {name: values[is_on] for name, values in switches.items() if name in names}
    is_switch = bool(found)
    if "reasoning_effort" in names and not is_on:
        words = set(re.findall(r"[\"'](\w+)[\"']", template))
        effort = next((word for word in _EFFORTS if word in words), "low")
        found["reasoning_effort"] = effort
        is_switch = is_switch or effort in _EFFORTS[:2]
    elif "reasoning_effort" in names and "no_think" in template:
        found["reasoning_effort"] = "high"
    return found, is_switch


def find_open(text: str, kinds: Sequence[ThinkingKind]) -> ThinkingKind | None:
    """The kind whose thoughts `text` opens and does not end."""
    for kind in kinds:
        at = text.rfind(kind.start)
        if at >= 0 and not any(text.find(end, at) >= 0 for end in kind.ends):
            return kind
    return None


class ThinkingFilter(AnswerFilter):
    """Moves the thoughts at the beginning of an answer from `text` to `thought`, event by event.
    `controls` are marker tokens that the engine gives no text for, by id. `opened`: the prompt
    began the thoughts. `tokenize` reads markers.
    """

    def __init__(
        self,
        kinds: Sequence[ThinkingKind],
        opened: ThinkingKind | None = None,
        controls: Mapping[int, str] | None = None,
        tokenize: Callable[[str], list[int]] = lambda text: [],
    ) -> None:
        self._kinds, self._controls = kinds, controls or {}
        self._tokenize = functools.cache(tokenize)  # asked at every token of the thoughts
        self._open = opened
        self._held = ""
        self._has_thought = opened is not None
        self._has_answer = False

    def __call__(self, event: TokenEvent) -> TokenEvent:
        control = "" if event.token_id is None else self._controls.get(event.token_id, "")
        if self._has_answer and not control and not self._held:
            return event
        self._held += control + event.text
        shown, thought = self._take(ends=event.finish_reason is not None)
        return dataclasses.replace(event, text=shown, thought=thought)

    def find_closing(self) -> tuple[str, list[int]] | None:
        if self._open is None:
            return None
        return self._open.closing, self._tokenize(self._open.closing)

    def _take(self, *, ends: bool) -> tuple[str, str]:
        """What is decided of the text held so far: answer and thoughts; all of it when it ends."""
        shown, thought = "", ""
        while True:
            if self._open is not None:
                before, end = _split_first(self._held, self._open.ends)
                if end is None:
                    keep = 0 if ends else count_begun(self._held, self._open.ends)
                    cut = len(self._held) - keep
                    thought, self._held = thought + self._held[:cut], self._held[cut:]
                    return shown, self._strip_controls(thought)
                thought, self._held = thought + before, self._held[len(before) + len(end) :]
                self._open = None
            elif self._has_answer or not self._take_marker():
                break
        text = self._held.lstrip() if self._has_thought and not self._has_answer else self._held
        starts = [marker for kind in self._kinds for marker in (kind.start, *kind.silent)]
        if not ends and not self._has_answer:
            begun = text.lstrip()
            if not begun or any(start.startswith(begun) for start in starts):
                return shown, self._strip_controls(thought)
        self._held = ""
        self._has_answer = self._has_answer or bool(text.strip())
        return shown + self._strip_controls(text), self._strip_controls(thought)

    def _take_marker(self) -> bool:
        """Take a marker off the beginning of the text held. False if there is none."""
        text = self._held.lstrip()
        for kind in self._kinds:
            if text.startswith(kind.start):
                self._open, self._has_thought = kind, True
                self._held = text[len(kind.start) :]
                return True
            for marker in kind.silent:
                if text.startswith(marker):
                    self._held, self._has_thought = text[len(marker) :], True
                    return True
        return False

    def _strip_controls(self, text: str) -> str:
        for control in self._controls.values():
            text = text.replace(control, "")
        return text


def control_tokens(
    kinds: Sequence[ThinkingKind],
    tokenize: Callable[[str], list[int]],
    has_text: Callable[[int], bool],
) -> dict[int, str]:
    """The pieces of the kinds' markers that are one token without a text, by id."""
    markers = [m for kind in kinds for m in (kind.start, *kind.ends, *kind.silent)]
    return find_controls(markers, tokenize, has_text)


def find_controls(
    markers: Sequence[str], tokenize: Callable[[str], list[int]], has_text: Callable[[int], bool]
) -> dict[int, str]:
    """The pieces of markers that are one token without a text, by id."""
    found: dict[int, str] = {}
    for piece in {piece for marker in markers for piece in _pieces(marker)}:
        ids = tokenize(piece)
        if len(ids) == 1 and not has_text(ids[0]):
            found[ids[0]] = piece
    return found


def _pieces(marker: str) -> list[str]:
    return re.findall(r"<[^<>]*>|\[[^\[\]]*\]|◁[^◁▷]*▷", marker)


def _split_first(text: str, marks: Sequence[str]) -> tuple[str, str | None]:
    """The text before the first of `marks`, and that mark."""
    places = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    if not places:
        return text, None
    at, _, mark = min(places)
    return text[:at], mark


def count_begun(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `marks`."""
    longest = max(map(len, marks)) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-n:]) for mark in marks):
            return n
    return 0
