"""A checkpoint with a real tokenizer, through the kit's own writer, is a model to the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boardfit.converters.formats.gguf.recipe import load_recipe
from boardfit.converters.formats.gguf.write import write_gguf
from boardfit.converters.source.hf import open_directory
from tests.converters.families.checkpoints import Case
from tests.converters.families.conftest import all_cases
from tests.converters.families.engine_logits import engine_logits

pytestmark = [pytest.mark.oracle, pytest.mark.engine, pytest.mark.slow]

CASES = tuple(case for case in all_cases() if case.vocabulary is not None)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_logits_are_finite(case: Case, converted: Path, tmp_path: Path) -> None:
    spec = open_directory(converted / case.name)
    written = write_gguf(spec, load_recipe("q8_0"), tmp_path / "model.gguf", threads=2)
    logits = engine_logits(written.path, [5, 6, 7], n_ctx=256)
    assert logits.shape == (3, case.n_vocab)
    assert np.isfinite(logits).all()
    assert logits.std() > 0
