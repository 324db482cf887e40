"""CONTRIBUTING's map against the folders, tests against the source, lines against the budget."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("edge", "converters", "device_profiles")
# Raw lines of Python: raise one on purpose, in a commit that says why.
BUDGET = {"edge": 46_200, "converters": 27_000, "device_profiles": 3_000}
# Every folder of these is on the map, and of the others the first level.
DEEP = (*PACKAGES, "scripts")
NOT_ROOMS = ("__init__.py", "__main__.py")


def on_the_map() -> dict[str, list[Path]]:
    """What each entry of the map stands for. Entries of a line stand before two spaces; a line that
    is indented belongs to the package above it, and one that is indented far continues a text.
    """
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("\n## The house\n")[2].partition("\nWho may import")[0]
    found, package = dict[str, list[Path]](), ""
    for indent, line in re.findall(r"^    ( {0,8})(\S.*)$", section, re.MULTILINE):
        for entry in line.split("  ")[0].split():
            name = f"{package}{entry}" if indent else entry
            found[name] = [
                p for p in ROOT.glob(name.rstrip("/")) if p.is_dir() == (name[-1] == "/")
            ]
        if not indent:
            package = line.split()[0]
    return found


def rooms() -> Iterator[Path]:
    """Folders with files, and what lies loose in a package, as far as the map goes."""
    for top in (ROOT / name for name in (*DEEP, "tests")):
        files = [p for p in top.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        loose = {p for p in files if p.parent == top and p.suffix in ("", ".py")}
        folders = {folder for p in files for folder in p.parents if folder.is_relative_to(top)}
        deepest = len(top.parts) + (99 if top.name in DEEP else 1)
        yield from (folder for folder in folders if len(folder.parts) <= deepest)
        yield from (p for p in loose if p.name not in NOT_ROOMS)


def test_every_entry_of_the_map_exists() -> None:
    gone = [entry for entry, paths in on_the_map().items() if not paths]
    assert not gone, f"on the map of CONTRIBUTING.md, but not in the house: {gone}"


def test_every_room_is_on_the_map() -> None:
    drawn = {path for paths in on_the_map().values() for path in paths}
    absent = sorted(str(path.relative_to(ROOT)) for path in set(rooms()) - drawn)
    assert not absent, f"in the house, but not on the map of CONTRIBUTING.md: {absent}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_keeps_its_budget(package: str) -> None:
    n_lines = sum(len(path.read_bytes().splitlines()) for path in (ROOT / package).rglob("*.py"))
    assert n_lines <= BUDGET[package], (
        f"{package} has {n_lines} lines, its budget is {BUDGET[package]}: take lines out, or raise "
        "it on purpose, in a commit that says why"
    )


def test_tests_mirror_the_source() -> None:
    """The tests of a folder lie at the same path. Files loose in tests/ check the house itself."""
    source = {"lab": ROOT / "scripts"}
    # tests/field/ holds what people have on disk, for whole commands.
    whole = {ROOT / "tests", ROOT / "tests/field"}
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")} - whole
    parts = sorted(folder.relative_to(ROOT / "tests") for folder in folders)
    astray = [str(p) for p in parts if not (source.get(p.parts[0], ROOT) / p).is_dir()]
    assert not astray, f"no such folder in the source: {astray}"
