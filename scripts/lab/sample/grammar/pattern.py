"""A tiny pattern language for wordings: `(a|b)` one of, `[x]` maybe, `{slot}` a value.

`sample` draws one reading, `expand` lists them all. The second exists for one reason: the test
that proves that train and held-out wordings share no reading at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

# A parsed node is a text, a slot in its braces, or a tuple of alternatives, each a tuple of nodes.


class PatternError(ValueError):
    """A wording has unbalanced brackets; raised with the wording, as a data bug to be fixed."""


@cache
def parse(pattern: str) -> tuple[object, ...]:
    """Sequence of nodes of `pattern`."""
    nodes, end = _parse_sequence(pattern, 0, "")
    if end != len(pattern):
        raise PatternError(f"unexpected {pattern[end]!r} at {end} in {pattern!r}")
    return nodes


def _parse_sequence(pattern: str, start: int, stops: str) -> tuple[tuple[object, ...], int]:
    nodes: list[object] = []
    text = ""
    i = start
    while i < len(pattern) and pattern[i] not in stops:
        char = pattern[i]
        if char in "([":
            if text:
                nodes.append(text)
                text = ""
            choices, i = _parse_choices(pattern, i + 1, ")" if char == "(" else "]")
            nodes.append((*choices, ()) if char == "[" else choices)
        elif char == "{":
            if text:
                nodes.append(text)
                text = ""
            close = pattern.index("}", i)
            nodes.append(pattern[i : close + 1])
            i = close + 1
        elif char in ")]|":
            break
        else:
            text += char
            i += 1
    if text:
        nodes.append(text)
    return tuple(nodes), i


def _parse_choices(pattern: str, start: int, close: str) -> tuple[tuple[object, ...], int]:
    choices: list[object] = []
    i = start
    while True:
        nodes, i = _parse_sequence(pattern, i, "|" + close)
        choices.append(nodes)
        if i >= len(pattern):
            raise PatternError(f"missing {close!r} in {pattern!r}")
        i += 1
        if pattern[i - 1] == close:
            return tuple(choices), i
        if pattern[i - 1] != "|":
            raise PatternError(f"unexpected {pattern[i - 1]!r} in {pattern!r}")


def sample(pattern: str, rng: random.Random) -> list[str]:
    """One reading as pieces: texts, and slots still in their braces."""
    pieces: list[str] = []
    _sample(parse(pattern), rng, pieces)
    return pieces


def _sample(nodes: tuple[object, ...], rng: random.Random, pieces: list[str]) -> None:
    for node in nodes:
        if isinstance(node, str):
            pieces.append(node)
        elif isinstance(node, tuple):
            _sample(rng.choice(node), rng, pieces)


def expand(pattern: str) -> Iterator[str]:
    """Every reading of `pattern`, slots in braces, spaces tidied."""
    for reading in _expand(parse(pattern)):
        yield tidy(reading)


def _expand(nodes: tuple[object, ...]) -> Iterator[str]:
    if not nodes:
        yield ""
        return
    head, rest = nodes[0], nodes[1:]
    heads = [head] if isinstance(head, str) else [t for c in _alts(head) for t in _expand(c)]
    for tail in list(_expand(rest)):
        for text in heads:
            yield text + tail


def _alts(node: object) -> tuple[tuple[object, ...], ...]:
    assert isinstance(node, tuple)
    return node


def tidy(text: str) -> str:
    """Single spaces, none before punctuation: optional words leave gaps behind."""
    text = " ".join(text.split())
    for mark in ",?!.;:":
        text = text.replace(" " + mark, mark)
    return text
