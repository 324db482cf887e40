"""Text beside modules, and the tables of errors that are read from it."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

import boardfit.edge.errors as errors
from boardfit.device_profiles.toml_parser import decode_toml
from boardfit.edge.disk.data_files import find_trouble, read_text_beside

EDGE = Path(errors.__file__).parent
# What the callers of each table give to its messages.
WORDS = {
    "troubles.toml": {"place", "text"},
    "ssh_troubles.toml": {"place", "why", "name", "port", "entry"},
    "adb_troubles.toml": {"wanted", "shown", "last"},
    "card_troubles.toml": {"path", "reason"},
}


def test_a_value_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text('cd @ROOT@; "$@"; echo @NAME@')
    text = read_text_beside(str(tmp_path / "m.py"), "x.sh", root="@NAME@", name="n")
    assert text == 'cd @NAME@; "$@"; echo n'
    with pytest.raises(KeyError):
        read_text_beside(str(tmp_path / "m.py"), "x.sh", root="r")


def test_every_table_has_its_words() -> None:
    assert {path.name for path in EDGE.rglob("*troubles.toml")} == set(WORDS)


@pytest.mark.parametrize("path", EDGE.rglob("*troubles.toml"), ids=lambda path: path.name)
def test_every_row_makes_its_error(path: Path) -> None:
    for row in decode_toml(path.read_text(encoding="utf-8"))["trouble"]:
        fields = string.Formatter().parse(row["message"] + row["next_step"])
        assert {name for _, name, _, _ in fields if name} <= WORDS[path.name], row
        words = dict.fromkeys(WORDS[path.name], "{braces} stay")
        beside = str(path.with_name("module.py"))
        found = find_trouble(beside, path.name, f"… {row['parts'][0]} …", **words)
        assert isinstance(found, errors.EdgeError) and found.next_step, row
        assert set(row) == {"parts", "error", "message", "next_step"}
        assert issubclass(getattr(errors, row["error"]), errors.EdgeError)


def test_the_first_row_with_a_part_counts() -> None:
    beside = str(EDGE / "slots/files.py")
    full = find_trouble(beside, "troubles.toml", "cp: No space left on device", place="p", text="t")
    assert isinstance(full, errors.DoesNotFitError) and str(full).startswith("p is full: t")
    assert find_trouble(beside, "troubles.toml", "something else", place="p", text="t") is None
