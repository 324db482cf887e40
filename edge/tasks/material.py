"""Texts made from our own sentences: varied, seeded, of a length that a tokenizer counts.

A file in `texts/` holds sections of sentences with {slots}; slots in `fixed` keep their value over
a whole text. No sentence comes twice in a text.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from boardfit.device_profiles.toml_parser import load_toml

Count = Callable[[str], int]
_SLOT = re.compile(r"\{(\w+?)(\d?)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio])")
# Shorter texts have no greeting, no farewell.
_SHORT_TOKENS = 40
# Sentences looked at for the one that ends a text nearest to its length, and draws of its slots
# until it is a new one.
_TRIES, _REDRAWS = 12, 6


@dataclass(frozen=True)
class TextSection:
    """Sentences, each with a question it answers or an empty text; at most `count`. `optional` ones
    are left out of short texts, `last` ones end a text.
    """

    sentences: tuple[tuple[str, str], ...]
    title: str = ""
    count: int | None = None
    optional: bool = False
    last: bool = False


@dataclass(frozen=True)
class MaterialText:
    """A finished text and the questions that it answers."""

    text: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """One file of `texts/`. `one_section`: a text keeps to one of them; `headings`: they stand
    under their titles; `paragraphs`: longer ones are broken.
    """

    slots: Mapping[str, Sequence[str]]
    sections: tuple[TextSection, ...]
    fixed: tuple[str, ...] = ()
    one_section: bool = False
    headings: bool = False
    paragraphs: bool = False

    def compose(self, rng: random.Random, n_tokens: int, count: Count) -> MaterialText:
        """A text of about `n_tokens`, as near as whole sentences allow; one sentence at least."""
        return _Writer(self, rng, count).write(n_tokens)


@lru_cache(maxsize=8)
def load_material(name: str) -> Material:
    table = load_toml("boardfit.edge.tasks", f"texts/{name}.toml")
    sections = tuple(
        TextSection(
            sentences=(
                *((sentence, "") for sentence in entry.get("sentences", ())),
                *map(tuple, entry.get("facts", ())),
            ),
            title=entry.get("title", ""),
            count=entry.get("count"),
            optional=entry.get("once", False),
            last=entry.get("last", False),
        )
        for entry in table["sections"]
    )
    flags = {key: table.get(key, False) for key in ("one_section", "headings", "paragraphs")}
    return Material(table["slots"], sections, tuple(table.get("fixed", ())), **flags)


class _Writer:
    """Writes one text."""

    def __init__(self, material: Material, rng: random.Random, count: Count) -> None:
        self._material, self._rng, self._count = material, rng, count
        self._said: set[str] = set()
        self._uses: Counter[str] = Counter()
        self._fixed: dict[str, str] = {}
        for name in material.fixed:
            self._fixed[name] = self._fill(rng.choice(list(material.slots[name])), self._fixed)

    def write(self, n_tokens: int) -> MaterialText:
        parts = self._choose_sections(n_tokens)
        written: dict[int, list[tuple[str, str]]] = {}
        left = n_tokens
        # What ends the text is written first, so that its room is known.
        counted = sorted(
            (i for i, s in enumerate(parts) if s.count), key=lambda i: not parts[i].last
        )
        for i in counted:
            written[i] = self._take(parts[i], min(left, max(1, n_tokens // 4)), parts[i].count)
            left -= self._size(written[i])
        free = [i for i, section in enumerate(parts) if not section.count]
        for done, i in enumerate(free):
            share = left // (len(free) - done)
            if share > 0 or not any(written.values()):
                written[i] = self._take(parts[i], share, None)
                left -= self._size(written[i])
        used = [(parts[i], written[i]) for i in sorted(written) if written[i]]
        questions = tuple(q for _, said in used for _, q in said if q)
        return MaterialText(self._join(used), questions)

    def _choose_sections(self, n_tokens: int) -> list[TextSection]:
        sections = self._material.sections
        if self._material.one_section:
            return [self._rng.choice(sections)]
        return [s for s in sections if not (s.optional and n_tokens < _SHORT_TOKENS)]

    def _take(self, section: TextSection, n_tokens: int, most: int | None) -> list[tuple[str, str]]:
        """Sentences nearest to `n_tokens`, at most `most`; one for an empty text."""
        taken: list[tuple[str, str]] = []
        left = n_tokens
        while left > 0 and (most is None or len(taken) < most):
            options = self._options(section, 1)
            # The last sentence is chosen for its length, the others come as they are drawn.
            if options and self._count(options[0][0]) > 0.6 * left:
                options += self._options(section, _TRIES)
            best = min(options, key=lambda o: abs(left - self._count(o[0])), default=None)
            if best is None:
                break
            size = self._count(best[0])
            if size >= 2 * left and (taken or self._said):  # nearer without it
                break
            self._said.add(best[0])
            self._uses[best[2]] += 1
            taken.append(best[:2])
            left -= size
        return taken

    def _options(self, section: TextSection, n: int) -> list[tuple[str, str, str]]:
        """Up to `n` unused (sentence, question, template) of the least used templates."""
        found = []
        order = sorted(section.sentences, key=lambda s: (self._uses[s[0]], self._rng.random()))
        for template, question in order[:n]:
            for _ in range(_REDRAWS):
                binding = dict(self._fixed)
                sentence = self._fill(template, binding)
                if sentence not in self._said:
                    found.append((sentence, self._fill(question, binding), template))
                    break
            else:
                self._uses[template] += 1000  # all its variants are used
        return found

    def _fill(self, template: str, binding: dict[str, str]) -> str:
        """Slots drawn into `binding`; {name2} is another value than {name}, {Name} a capital."""

        def value(match: re.Match[str]) -> str:
            name, digit = match[1].lower(), match[2]
            key = name + digit
            if key not in binding:
                others = {v for k, v in binding.items() if k.rstrip("0123456789") == name}
                options = [v for v in self._material.slots[name] if v not in others]
                binding[key] = self._fill(self._rng.choice(options), binding)
            found = binding[key]
            return found[:1].upper() + found[1:] if match[1][0].isupper() else found

        return _ARTICLE.sub(r"\1n ", _SLOT.sub(value, template))

    def _size(self, said: Sequence[tuple[str, str]]) -> int:
        return sum(self._count(sentence) for sentence, _ in said)

    def _join(self, used: Sequence[tuple[TextSection, list[tuple[str, str]]]]) -> str:
        blocks = []
        for section, said in used:
            sentences = [sentence for sentence, _ in said]
            if self._material.paragraphs:
                blocks += [" ".join(part) for part in self._paragraphs(sentences)]
                continue
            title = self._fill(section.title, dict(self._fixed)) if section.title else ""
            head = f"{title}\n" if self._material.headings and title else ""
            blocks.append(head + " ".join(sentences))
        long = self._material.headings or self._material.paragraphs
        return ("\n\n" if long else "\n").join(blocks)

    def _paragraphs(self, sentences: list[str]) -> Iterator[list[str]]:
        while sentences:
            n = self._rng.randint(3, 5)
            n = len(sentences) if len(sentences) < n + 2 else n
            yield sentences[:n]
            sentences = sentences[n:]
