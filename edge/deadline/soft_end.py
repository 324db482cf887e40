"""Ending on a sentence: where sentences end, and holding back what may not be finished in time."""

from __future__ import annotations

import re

# A full stop of any script, closing quotes and brackets behind it, then the end or white space.
_END = re.compile(r"[.!?…。！？｡؟۔।]+[\"'”’»)\]}*_`]*(?=\s|$)")
_CJK_END = re.compile(r"[。！？｡]+[”’」』）]*")
# Dots that end no sentence.
_ABBREVIATIONS = frozenset(
    ("e.g", "i.e", "etc", "dr", "mr", "mrs", "ms", "prof", "st", "vs", "no", "fig", "approx")
) | {"bzw", "z.b", "d.h", "u.a", "usw", "nr", "cf", "al", "ca"}
_WORD = re.compile(r"[\w.]+$")
_CLOSERS = {"}": "{", "]": "["}


def sentence_ends(text: str) -> list[int]:
    """Offsets in `text` right behind each complete sentence, ascending. A sentence ends with a
    full stop of any script (no abbreviation, no list number), or with a blank line.
    """
    ends = {match.end() for match in _CJK_END.finditer(text)}
    for match in _END.finditer(text):
        if match.group() == ".":
            word = _WORD.search(text[: match.start()])
            before = word.group().lower() if word else ""
            is_list_number = before.isdigit() and _starts_line(text, match.start())
            if before in _ABBREVIATIONS or is_list_number:
                continue
        ends.add(match.end())
    ends.update(match.start() for match in re.finditer(r"(?<=\S)\n\s*\n", text))
    return sorted(ends)


def _starts_line(text: str, dot: int) -> bool:
    """Whether the number before `dot` is a list's: `1. ` at the beginning of a line."""
    return bool(re.search(r"(^|\n)\s*\d+$", text[:dot]))


def is_whole(text: str) -> bool:
    """Whether `text` ends where a sentence does, or is a complete piece of JSON or code."""
    stripped = text.rstrip()
    if not stripped:
        return False
    ends = sentence_ends(stripped)
    if ends and ends[-1] == len(stripped):
        return True
    opener = _CLOSERS.get(stripped[-1])
    return opener is not None and stripped.count(opener) == stripped.count(stripped[-1])


class SentenceHold:
    """Text passes through until `close` is called; from then on what follows the last complete
    sentence is held back until its sentence is complete, so that an answer cut for time shows
    whole sentences only. An answer without a single one so far holds nothing back.
    """

    def __init__(self) -> None:
        self._shown = ""
        self._held = ""
        self._holding = False

    @property
    def text(self) -> str:
        """What was released."""
        return self._shown

    def close(self) -> None:
        """Begin to hold back; at once only if what is shown is whole, else from the next end on."""
        self._holding = True

    def push(self, piece: str) -> str:
        """Take the next piece of the answer; returns what may be shown now."""
        self._held += piece
        if not self._holding or not self._has_sentence():
            return self._release(len(self._held))
        whole = self._shown + self._held
        ends = [end for end in sentence_ends(whole) if end >= len(self._shown)]
        # The sentence that was under way when holding began goes on to be shown word by word.
        if not is_whole(self._shown) and not ends:
            return self._release(len(self._held))
        return self._release(ends[-1] - len(self._shown)) if ends else ""

    def rest(self, *, drop: bool) -> str:
        """At the end: what is still held, or nothing if it is to be dropped."""
        if drop:
            self._held = ""
            return ""
        return self._release(len(self._held))

    def _has_sentence(self) -> bool:
        return bool(sentence_ends(self._shown + self._held))

    def _release(self, n: int) -> str:
        out, self._held = self._held[:n], self._held[n:]
        self._shown += out
        return out
