"""The conversations that ship with the sample model are those that the grammar makes."""

from __future__ import annotations

import pytest

from boardfit.converters.sample import MODEL_DIR
from lab.sample.freeze import MAKERS, make_file


@pytest.mark.parametrize("name", MAKERS)
def test_frozen_conversations_are_what_the_grammar_makes(name):
    kept = (MODEL_DIR.parent / f"{name}.jsonl").read_text(encoding="utf-8")
    assert make_file(name) == kept
