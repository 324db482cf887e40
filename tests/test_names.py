"""Names of classes, and the words of CONTRIBUTING.md's rules on language, checked."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("device_profiles", "edge", "converters")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_no_class_name_stands_for_two_classes() -> None:
    places = defaultdict(list)
    for path in python_files(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    doubled = {name: found for name, found in places.items() if len(found) > 1}
    assert not doubled, f"give each class a name of its own: {doubled}"


#: Words of a private idiom (CONTRIBUTING.md, Language), and how often docstrings, comments,
#: messages and docs still use them. A number may only shrink. What is left of "tell" is the option
#: --tell, of "nobody" a user of Debian.
IDIOM = {
    r"say|says|said": 74,
    r"tell|tells|told": 10,
    r"nobody|somebody|anybody": 2,
    r"whoever|whatever": 0,
    r"so many|so much": 0,
    r"away with|what becomes? of|what became of": 0,
}


@pytest.fixture(scope="module")
def prose() -> str:
    """Return the docstrings, comments and strings of the packages, and the pages for users."""
    pages = (*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "SECURITY.md")
    texts = [page.read_text() for page in pages]
    for path in python_files(*PACKAGES):
        if "sample" not in path.parts:  # the sample model's language is data
            tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            texts += [t.string for t in tokens if t.type in (tokenize.COMMENT, tokenize.STRING)]
    return "\n".join(texts)


@pytest.mark.parametrize("words", IDIOM)
def test_prose_does_without_the_idiom(words: str, prose: str) -> None:
    found = [
        prose[max(0, match.start() - 40) : match.end() + 40]
        for match in re.finditer(rf"\b({words})\b", prose, re.IGNORECASE)
    ]
    assert len(found) <= IDIOM[words], f"use other words, or lower the number: {found}"
