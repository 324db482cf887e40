"""`edge formats`, and which families are built by whom."""

from __future__ import annotations

import json

from click.testing import CliRunner

from boardfit.converters.families.registry import FAMILIES
from boardfit.converters.formats.base import FORMATS
from boardfit.converters.formats.command import formats_command


def show(*words: str) -> str:
    done = CliRunner().invoke(formats_command, list(words), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_format_has_its_recipes() -> None:
    found = json.loads(show("--json"))
    assert list(found) == list(FORMATS)
    assert all(row["recipes"] for row in found.values())
    assert all(name in show() for name in FORMATS)


def test_families_are_listed_by_who_converts_them() -> None:
    found = json.loads(show("--families", "--json"))
    assert set(found["native"]) == set(FAMILIES)
    assert "Starcoder2ForCausalLM" in found["upstream"] and "b11960" in found["none"]["lfm3"]
    text = show("--families")
    assert "  Starcoder2ForCausalLM\n" in text and "qwen3 " in text
