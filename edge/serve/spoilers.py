"""Find what kept the beginning of a prompt from being reused, and move it out of the way.

A clock at the head of a system prompt makes every token behind it new: the board reads all of them
again. The latest system prompts are compared in memory, and none of their text leaves it.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from boardfit.edge.engines.prefix_cache import common
from boardfit.edge.serve.ask import Ask
from boardfit.edge.types import Message

#: Fewer tokens lost than this are not worth a word.
MIN_LOST = 32
_MOST_KEPT = 4
#: Tokens in a row that are alike count as the same text.
_RUN = 8

_TIME = r"\b\d{1,2}[:.h]\d{2}(?::\d{2})?\b|\b\d{1,2}\s?(?:[ap]m\b|o'clock)"
_DATE = (
    r"\b\d{4}-\d{2}-\d{2}|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b"
    r"|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.? \d"
)
#: What a changed word is, by the word itself; the first that fits.
_WORD_CLASSES = (
    ("clock", re.compile(_TIME + r"|^\d{2,4}-\d{2}-\d{2}[t_]\d", re.I)),
    ("date", re.compile(_DATE, re.I)),
    ("id", re.compile(r"^(?=.*\d)(?=.*[a-z])[\W_]*(?:\w+=)?[0-9a-z-]{5,}[\W_]*$", re.I)),
)
#: What a changed number is, by the words around it.
_LINE_CLASSES = (
    ("clock", re.compile(r"\b(?:time|clock|now|uhr|heure|hora)\b", re.I)),
    ("date", re.compile(r"\b(?:date|day|today)\b|" + _DATE, re.I)),
    ("counter", re.compile("")),
)
#: A sentence with the time or the day of now.
_CLOCK_WORDS = re.compile(r"\b(?:current|currently|now|today|today's|it is)\b", re.I)
_CLOCK = re.compile(f"{_TIME}|{_DATE}", re.I)
_SENTENCE = re.compile(r"[^\n.!?]*(?:[.!?](?!\s|$)[^\n.!?]*)*(?:[.!?]+|(?=\n)|$)[ \t]*\n?")
_LONGEST_CLOCK = 160
_MOST_MOVED = 3
#: Where clocks are looked for: what stands behind them is what they cost.
_HEAD_CHARS = 8000


@dataclass(frozen=True)
class PrefixLost:
    """Reuse ended at token `at_token`; `n` tokens behind it were as before, but read again. `kind`
    is the class of the text that changed there.
    """

    at_token: int
    n: int
    kind: str


class PromptHistory:
    """The latest system prompts, and their tokens."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, list[int]] = OrderedDict()

    def shared(self, tokens: Sequence[int]) -> int:
        """Where the most alike of the earlier prompts parts from this one."""
        return max((common(old, tokens) for old in self._kept.values()), default=0)

    def compare(self, system: str, tokens: list[int]) -> PrefixLost | None:
        """What a system prompt lost over the most alike of the earlier ones, and remember it."""
        is_new = system not in self._kept
        found = [(*count_lost(self._kept[old], tokens), old) for old in self._kept if is_new]
        self._kept[system] = tokens
        self._kept.move_to_end(system)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        n, at, old = max(found, default=(0, 0, ""))
        return PrefixLost(at, n, classify(old, system)) if n >= MIN_LOST else None


def count_lost(before: list[int], tokens: list[int]) -> tuple[int, int]:
    """How many of `tokens` are as `before` but stand behind a change, and where that is."""
    at = common(before, tokens)
    runs, alike = set(_runs(before)), set[int]()
    for i, run in enumerate(_runs(tokens[at:]), start=at):
        if run in runs:
            alike.update(range(i, i + _RUN))
    return len(alike), at


def _runs(tokens: list[int]) -> Iterator[tuple[int, ...]]:
    return zip(*(tokens[i:] for i in range(_RUN)), strict=False)


def classify(old: str, new: str) -> str:
    """The class of the first word in which two texts differ: clock, date, id, counter or text."""
    at = common(old, new)
    start = max(new.rfind(" ", 0, at), new.rfind("\n", 0, at)) + 1
    word = (new[start:].split(maxsplit=1) or [""])[0]
    for kind, pattern in _WORD_CLASSES:
        if pattern.search(word):
            return kind
    if not re.search(r"\d", word):
        near = new[start : start + 24].partition("\n")[0]
        return "date" if re.match(_DATE, near, re.I) else "text"
    line = new[new.rfind("\n", 0, start) + 1 :].partition("\n")[0]
    near = line[: start - new.rfind("\n", 0, start) + 24][-64:]
    return next(kind for kind, pattern in _LINE_CLASSES if pattern.search(near))


def steady(ask: Ask) -> Ask:
    """The same request with the sentences that hold a clock behind the system prompt."""
    if ask.system is None:
        return ask
    text, moved = move_clocks(ask.system)
    if not moved:
        return ask
    note = f"{moved} sentence{'s' * (moved > 1)} with a clock moved behind the system prompt"
    head = Message("system", text)
    return replace(ask, messages=(head, *ask.messages[1:]), notes=(*ask.notes, note))


def move_clocks(system: str) -> tuple[str, int]:
    """A text with its clock sentences at its end, and how many were moved."""
    sentences = _SENTENCE.finditer(system, 0, _HEAD_CHARS)
    found = [each for each in sentences if is_clock(each[0])][:_MOST_MOVED]
    if not found or not system[found[0].end() :].strip():
        return system, 0
    kept, end = "", 0
    for match in found:
        kept += system[end : match.start()]
        end = match.end()
    clocks = " ".join(match[0].strip() for match in found)
    return f"{(kept + system[end:]).strip()}\n\n{clocks}", len(found)


def is_clock(sentence: str) -> bool:
    is_short = len(sentence) <= _LONGEST_CLOCK
    return bool(is_short and _CLOCK_WORDS.search(sentence) and _CLOCK.search(sentence))
