"""`edge formats`, and which families are built by whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from boardfit.converters.families.registry import FAMILIES
from boardfit.converters.formats.command import ABSENT, formats_command
from boardfit.converters.formats.table import FORMATS
from boardfit.converters.formats.upstream.tree import OVERRIDE, SCRIPT


def show(*words: str) -> str:
    done = CliRunner().invoke(formats_command, list(words), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_format_has_its_recipes() -> None:
    found = json.loads(show("--json"))
    assert list(found) == list(FORMATS)
    assert all(row["recipes"] for row in found.values())
    assert all(name in show() for name in FORMATS)


def test_families_are_listed_by_who_converts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OVERRIDE, raising=False)
    assert ABSENT in show("--families")
    assert json.loads(show("--families", "--json"))["upstream"] is None
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion/__init__.py").write_text('TEXT_MODEL_MAP: dict = {"One": "one"}\n')
    (tmp_path / SCRIPT).touch()
    monkeypatch.setenv(OVERRIDE, str(tmp_path))
    found = json.loads(show("--families", "--json"))
    assert set(found["native"]) == set(FAMILIES)
    assert found["upstream"] == ["One"] and "b11960" in found["none"]["lfm3"]
    text = show("--families")
    assert "  One\n" in text and "qwen3 " in text and ABSENT not in text
