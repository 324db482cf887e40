"""Leave out sentences of a long message, but keep the question and the sentences about it.

Sentences are ranked by the terms they share with the question (BM25, Robertson and Zaragoza 2009)
or, without one, by the terms that the text repeats; early ones and neighbours of chosen ones a
little ahead. They are given back in their order, never rewritten.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from boardfit.edge.deadline.soft_end import sentence_ends

ELLIPSIS = "[…]"
_TERM = re.compile(r"[\w']+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# A paragraph of up to this many words at either end may be the request itself.
_REQUEST_WORDS = 60
_K1, _B = 1.2, 0.75  # BM25's usual constants
_ASKS = re.compile(
    r"\?|？|\b(summari[sz]e|translate|explain|list|answer|write|rewrite|describe|compare|find|"
    r"extract|what|why|how|when|where|who|which)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sentence:
    """A sentence with what separates it from the next; `is_request` pieces always stay."""

    text: str
    is_request: bool


def split(text: str) -> list[Sentence]:
    """Sentences of a message; joined again they are the message. The first and last paragraph are
    the request where they are short and ask for something (the last one, if none does).
    """
    paragraphs = [p for p in re.split(r"(?<=\n)(?=\s*\S)|(?<=\n\n)", text) if p]
    asks = [len(p.split()) <= _REQUEST_WORDS and bool(_ASKS.search(p)) for p in paragraphs]
    wanted = {i for i in (0, len(paragraphs) - 1) if paragraphs and asks[i]}
    pieces = []
    for i, paragraph in enumerate(paragraphs):
        start = 0
        for end in [*sentence_ends(paragraph), len(paragraph)]:
            while end < len(paragraph) and paragraph[end].isspace():
                end += 1
            if end > start:
                pieces.append(Sentence(paragraph[start:end], i in wanted))
                start = end
    if len(paragraphs) == 1 or not wanted:
        # One block: its last sentence asks, or its first.
        marks = [bool(re.search(r"[?？]\s*$", piece.text)) for piece in pieces]
        at = {i for i in (0, len(pieces) - 1) if pieces and marks[i]} or {len(pieces) - 1}
        pieces = [Sentence(piece.text, i in at) for i, piece in enumerate(pieces)]
    return pieces


def select(pieces: Sequence[Sentence], sizes: Sequence[int], budget: int) -> str | None:
    """The message with its request and the most relevant other sentences, at most `budget` in
    the unit of `sizes`; gaps are marked. None if the request alone is larger, or if all fits.
    """
    left = budget - sum(size for size, piece in zip(sizes, pieces, strict=True) if piece.is_request)
    if left < 0 or sum(sizes) <= budget:
        return None
    kept = {i for i, piece in enumerate(pieces) if piece.is_request}
    for i in rank(pieces):
        if i not in kept and sizes[i] + 1 <= left:
            kept.add(i)
            left -= sizes[i] + 1
    out: list[str] = []
    for i, piece in enumerate(pieces):
        if i in kept:
            out.append(piece.text)
        elif not out or not out[-1].startswith(ELLIPSIS):
            out.append(ELLIPSIS + ("\n" if piece.text.endswith("\n") else " "))
    return "".join(out).strip()


def rank(pieces: Sequence[Sentence]) -> list[int]:
    """Indices of pieces, most relevant to the request first."""
    bags = [Counter(terms(piece.text)) for piece in pieces]
    n = len(pieces)
    lengths = [sum(bag.values()) for bag in bags]
    mean = sum(lengths) / n if n else 0.0
    found_in = Counter(term for bag in bags for term in bag)
    request = {term for i, piece in enumerate(pieces) if piece.is_request for term in bags[i]}
    body = Counter(term for i, p in enumerate(pieces) if not p.is_request for term in set(bags[i]))
    # The request's own words, and, where it has no word of the text, what the text is about.
    asked = {term for term in request if body[term]} or {t for t, k in body.items() if k > 1}

    def score(i: int) -> float:
        total = 0.0
        for term in asked & bags[i].keys():
            idf = math.log(1 + (n - found_in[term] + 0.5) / (found_in[term] + 0.5))
            tf = bags[i][term]
            length = 1 - _B + _B * lengths[i] / mean if mean else 1.0
            total += idf * tf * (_K1 + 1) / (tf + _K1 * length)
        return total

    scores = [score(i) for i in range(n)]
    best = max(scores, default=0.0) or 1.0
    for i in range(n):
        beside = max(scores[max(0, i - 1) : i] + scores[i + 1 : i + 2], default=0.0)
        # An earlier position, and a good neighbouring sentence, break ties.
        scores[i] += 0.1 * beside + 0.05 * best * (1 - i / n)
    return sorted(range(n), key=lambda i: (-scores[i], i))


def terms(text: str) -> list[str]:
    """Lower-case words, crudely stemmed; single characters of scripts without spaces."""
    found = []
    for word in _TERM.findall(text.lower()):
        if _CJK.search(word):
            found += list(word)
        elif word[0].isdigit():
            found.append(word)
        elif len(word) > 2:
            found.append(word[: max(4, len(word) - 3)] if len(word) > 6 else word.rstrip("s"))
    return found
