"""Documents beside the weights: whatever their size, they are read in limits or left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.converters.documents import companion_notes, companions, read_front_matter
from boardfit.edge.errors import InputError, UnsafeInputError


def card(folder: Path, header: str) -> Path:
    path = folder / "README.md"
    path.write_text(f"---\n{header}---\n# x\n")
    return path


def test_a_card_of_three_gigabytes_is_left_out_and_named(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(3 << 30)
    with pytest.raises(InputError, match=r"README\.md"):
        read_front_matter(tmp_path / "README.md")
    assert not list(companions(tmp_path))
    assert [note.partition(" ")[0] for note in companion_notes(tmp_path)] == [
        "LICENSE",
        "README.md",
    ]


@pytest.mark.parametrize(
    "header",
    [
        "".join(f"a{i}: [{i}]\n" for i in range(40_000)),
        "a: &a [x, x]\n" + "".join(f"b{i}: &b [*a, *a]\n" for i in range(30)),
        "a: &a [*a]\n",
        "a: " + "[" * 5000 + "\n",
        "a: " + "9" * 5000 + "\n",
        "a: 2026-13-45\n",
        "!!python/object/apply:os.system [ls]\n",
    ],
    ids=["long", "aliases", "a circle", "deep", "a number", "a date", "an object"],
)
def test_a_header_that_is_none_is_refused_at_once(tmp_path: Path, header: str) -> None:
    with pytest.raises(InputError, match="YAML header"):
        read_front_matter(card(tmp_path, header))


def test_a_plain_header_is_read(tmp_path: Path) -> None:
    found = read_front_matter(card(tmp_path, "license: mit\nlanguage:\n- no\n- en\n"))
    assert found == {"license": "mit", "language": ["no", "en"]}


def test_added_tokens_have_a_limit() -> None:
    from boardfit.converters.tokenizers.files import check_added

    check_added(["x" * 1000] * 10, "tokenizer.json")
    for texts in (["x" * (4 << 20)], ["x" * 1000] * 100_000):
        with pytest.raises(UnsafeInputError, match="added tokens"):
            check_added(texts, "tokenizer.json")
