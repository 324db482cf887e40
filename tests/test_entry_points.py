"""Entry points read from installed distributions, and from broken ones."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boardfit.edge.entry_points import _section, load_entry_points


def test_our_own_are_found_as_the_standard_library_finds_them() -> None:
    assert list(load_entry_points("edge.commands")) == [
        entry.load() for entry in entry_points(group="edge.commands")
    ]


def test_only_the_first_of_a_name_counts_and_broken_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, text in (("one", b"[g]\na = math:pi\n[h]\nb = math:e"), ("two", b"[g]\na=no:where")):
        folder = tmp_path / place / "x-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "entry_points.txt").write_bytes(text)
    broken = tmp_path / "one" / "y-1.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_bytes(b"\xff\xfe[g]\nz = no:where")
    places = [str(tmp_path / "one"), str(tmp_path / "missing"), str(tmp_path / "two")]
    monkeypatch.setattr(sys, "path", places + sys.path)
    assert list(load_entry_points("g")) == [sys.modules["math"].pi]
    assert list(load_entry_points("h")) == [sys.modules["math"].e]


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    assert all(name == name.strip() for name, _ in _section(text, "g"))
