"""Recognise a byte-level BPE pre-tokenizer by what it does, not by a hash of one vocabulary.

`describe` brings a tokenizer.json into a normal form; `candidate_names` looks it up in `PRE_TYPES`.
Where it is unknown, `verify.identify_pre` finds out which behaviour yields the checkpoint's ids.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from boardfit.device_profiles.toml_parser import load_toml
from boardfit.edge.errors import InputError, UnsupportedModelError
from boardfit.edge.units import printable

# One step: ("split", regex), every match a piece of its own, or another kind and its argument.
Step = tuple[str, str]


@dataclass(frozen=True)
class PreType:
    """One `tokenizer.ggml.pre` name: a row of pretypes.toml, which explains it."""

    name: str
    steps: tuple[Step, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    markers: tuple[str, ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PreType:
        steps = tuple(
            ("split", PATTERNS[step]) if isinstance(step, str) else (step[0], step[1])
            for step in row["steps"]
        )
        return cls(**{**row, "steps": steps, "markers": tuple(row.get("markers", ()))})


_TABLE = load_toml("boardfit.converters.tokenizers", "pretypes.toml")
PATTERNS: Mapping[str, str] = _TABLE["patterns"]
PRE_TYPES = tuple(map(PreType.from_row, _TABLE["names"]))


@dataclass(frozen=True)
class Splitting:
    """Normal form: the steps before BPE, the normalizers' names, and what the engine cannot do."""

    steps: tuple[Step, ...]
    normalizers: tuple[str, ...]
    prefix_space: bool


def canonical_regex(regex: str) -> str:
    """One spelling for the ways in which the same pattern is written in the wild.

    Folded: spellings of the English contractions, possessive quantifiers (no difference to what a
    whole match covers here), `{1}`, escapes that stand for themselves in a class.
    """
    for spelling in _TABLE["contraction_spellings"]:
        regex = regex.replace(spelling, PATTERNS["contractions"])
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    regex = re.sub(r"(?<!\\)([?*+])\+", r"\1", regex)
    regex = regex.replace(r"\p{N}{1}", r"\p{N}").replace(r"\p{N}{1,1}", r"\p{N}")
    return regex.replace(r"\\-", "-").replace(r"\s+(?!\S)|\s+$", r"\s+(?!\S)|\s+")


# Compared canonically on both sides, so that the table can hold patterns as they are published.
_CANONICAL = {
    pre: tuple((kind, canonical_regex(value)) for kind, value in pre.steps) for pre in PRE_TYPES
}


def describe(tokenizer_json: Mapping[str, Any]) -> Splitting:
    """The normal form of a byte-level BPE tokenizer.json.

    Raises UnsupportedModelError for a step that is no part of byte-level BPE.
    """
    steps: list[Step] = []
    byte_level = prefix_space = False
    for step in flatten(tokenizer_json.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "ByteLevel":
            byte_level = True
            prefix_space = prefix_space or bool(step.get("add_prefix_space", True))
            if step.get("use_regex", True):
                steps.append(("split", canonical_regex(PATTERNS["gpt2"])))
        elif kind == "Split":
            steps.append(_split_step(step))
        elif kind == "Digits":
            steps.append(("split", r"\p{N}" if step.get("individual_digits") else r"\p{N}+"))
        elif kind == "Punctuation":
            steps.append(("punctuation", str(step.get("behavior", "isolated")).lower()))
        else:
            raise UnsupportedModelError(
                f"tokenizer.json: pre-tokenizer step {printable(str(kind))!r} is not one of "
                "Split, Digits, Punctuation and ByteLevel",
                next_step="convert with upstream's converter and come in through the GGUF",
            )
    if not byte_level:
        raise UnsupportedModelError("tokenizer.json: the pre-tokenizer has no ByteLevel step")
    normalizers = tuple(
        str(step.get("type")) for step in flatten(tokenizer_json.get("normalizer"), "normalizers")
    )
    return Splitting(tuple(steps), normalizers, prefix_space)


def candidate_names(
    splitting: Splitting, *, ignore_merges: bool, vocab: Container[str], prefer: str | None = None
) -> list[str]:
    """Names to try, best first; the first is upstream's choice where that is decidable.

    A recognised pattern yields the entries that share it (those with the right `ignore_merges`
    first), an unrecognised one a representative of every behaviour, the most similar text first.
    `prefer` names an entry that goes first if it is among those that match.
    """
    fitting = [
        pre
        for pre in PRE_TYPES
        if _CANONICAL[pre] == splitting.steps and all(marker in vocab for marker in pre.markers)
    ]
    if not fitting:
        by_behaviour: dict[tuple[Any, ...], PreType] = {}
        for pre in PRE_TYPES:
            if not pre.markers:
                by_behaviour.setdefault((_CANONICAL[pre], pre.ignore_merges), pre)

        def similarity(pre: PreType) -> float:
            ours, known = (
                " then ".join(value for _, value in steps)
                for steps in (splitting.steps, _CANONICAL[pre])
            )
            return float(difflib.SequenceMatcher(None, ours, known, autojunk=False).ratio())

        fitting = sorted(by_behaviour.values(), key=similarity, reverse=True)
    ordered = sorted(fitting, key=lambda p: (p.name != prefer, p.ignore_merges != ignore_merges))
    return list(dict.fromkeys(pre.name for pre in ordered))


def is_recognised(splitting: Splitting) -> bool:
    """Whether the table has an entry with exactly these steps."""
    return any(steps == splitting.steps for steps in _CANONICAL.values())


def flatten(node: Any, children: str) -> list[Mapping[str, Any]]:
    """The steps of a `pre_tokenizer` or `normalizer` object, sequences taken apart. `children` is
    the key under which a sequence keeps its steps.
    """
    if node is None:
        return []
    if not isinstance(node, Mapping):
        raise InputError(f"tokenizer.json: expected an object, got {type(node).__name__}")
    if node.get("type") == "Sequence":
        steps = node.get(children, [])
        if not isinstance(steps, list):
            raise InputError(f"tokenizer.json: {children} is no list, got {type(steps).__name__}")
        return [step for child in steps for step in flatten(child, children)]
    return [node]


def _split_step(step: Mapping[str, Any]) -> Step:
    pattern = step.get("pattern") or {}
    if not isinstance(pattern, Mapping):
        raise InputError(f"tokenizer.json: expected a pattern, got {type(pattern).__name__}")
    if "Regex" in pattern:
        regex = canonical_regex(str(pattern["Regex"]))
    else:
        regex = re.escape(str(pattern.get("String", "")))
    behavior, invert = str(step.get("behavior", "")).lower(), bool(step.get("invert", False))
    # Keeping the matches and dropping nothing between them is the same as isolating them, for the
    # patterns in use, which cover every character; verification would show one that does not.
    if (behavior, invert) in (("isolated", False), ("removed", True), ("isolated", True)):
        return ("split", regex)
    return (f"split {behavior}{' inverted' if invert else ''}", regex)
