"""End on a sentence: find sentence ends, and hold back text that may not finish in time."""

import re

# A full stop of any script, closing quotes and brackets behind it, then the end or white space.
_END = re.compile(r"[.!?…。！？｡؟۔।]+[\"'”’»)\]}*_`]*(?=\s|$)")
_CJK_END = re.compile(r"[。！？｡]+[”’」』）]*")
# Dots that end no sentence.
_ABBREVIATIONS = frozenset(
    ("e.g", "i.e", "etc", "dr", "mr", "mrs", "ms", "prof", "st", "vs", "no", "fig", "approx")
) | {"bzw", "z.b", "d.h", "u.a", "usw", "nr", "cf", "al", "ca"}
_WORD = re.compile(r"[\w.]+$")
_LONGEST_WORD = 24
# How far back it is looked for where a text's last sentence ends.
_TAIL = 400
_CLOSERS = {"}": "{", "]": "["}


def sentence_ends(text: str) -> list[int]:
    """Offsets in `text` right behind each complete sentence, ascending. A sentence ends with a
    full stop of any script (no abbreviation, no list number), or with a blank line.
    """
    ends = {match.end() for match in _CJK_END.finditer(text)}
    for match in _END.finditer(text):
        if match.group() == ".":
            word = _WORD.search(text[max(0, match.start() - _LONGEST_WORD) : match.start()])
            before = word.group().lower() if word else ""
            is_list_number = before.isdigit() and _starts_line(text, match.start())
            if before in _ABBREVIATIONS or is_list_number:
                continue
        ends.add(match.end())
    ends.update(match.start() for match in re.finditer(r"(?<=\S)\n\s*\n", text))
    return sorted(ends)


def _starts_line(text: str, dot: int) -> bool:
    """Whether the number before `dot` is a list's: `1. ` at the beginning of a line."""
    start = max(0, dot - _LONGEST_WORD)
    return bool(re.search(r"\n\s*\d+$" if start else r"(^|\n)\s*\d+$", text[start:dot]))


def is_whole(text: str) -> bool:
    """Whether `text` ends where a sentence does, or is a complete piece of JSON or code."""
    stripped = text.rstrip()
    if not stripped:
        return False
    tail = stripped[-_TAIL:]
    ends = sentence_ends(tail)
    if ends and ends[-1] == len(tail):
        return True
    opener = _CLOSERS.get(stripped[-1])
    return opener is not None and stripped.count(opener) == stripped.count(stripped[-1])


class SentenceHold:
    """Text passes through until `close` is called; from then on what follows the last complete
    sentence is held back until its sentence is complete. An answer without any holds nothing
    back.
    """

    def __init__(self) -> None:
        self.text = ""  # what was released
        self._held = ""
        self._holding = False
        self._has_sentence = False

    @property
    def is_whole(self) -> bool:
        tail = self.text[-_TAIL:].rstrip()
        return is_whole(self.text if tail and tail[-1] in _CLOSERS else tail)

    def close(self) -> None:
        """Begin to hold back; at once only if what is shown is whole, else from the next end on."""
        self._holding = True

    def push(self, piece: str) -> str:
        """Take the next piece of the answer; returns what may be shown now."""
        if not self._holding:  # nothing is held either: every token of an answer comes this way
            self.text += piece
            return piece
        self._held += piece
        tail = self.text[-_TAIL:]
        ends = sentence_ends(tail + self._held)
        self._has_sentence = self._has_sentence or bool(ends)
        if not self._has_sentence:
            return self._release(len(self._held))
        ends = [end for end in ends if end >= len(tail)]
        # The sentence that was under way when holding began goes on to be shown word by word.
        if not ends and not self.is_whole:
            return self._release(len(self._held))
        return self._release(ends[-1] - len(tail)) if ends else ""

    def rest(self, *, drop: bool) -> str:
        """At the end: what is still held, or nothing if it is to be dropped."""
        if drop:
            self._held = ""
            return ""
        return self._release(len(self._held))

    def _release(self, n: int) -> str:
        out, self._held = self._held[:n], self._held[n:]
        self.text += out
        return out
