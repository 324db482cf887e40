"""Families whose graphs differ most from Llama's, converted and compared with transformers: windows
and soft norms (Gemma 3), multipliers folded into weights (Granite), short convolutions (LFM2).
`scripts/check_families` does all eight in every format and prints the table of docs/formats.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from boardfit.converters.formats.litert.convert import convert_litert
from boardfit.converters.formats.litert.recipe import load_recipe
from boardfit.converters.source.hf import open_directory
from tests.converters.formats.litert import checkpoints
from tests.programs import skip_or_fail

REFERENCE = Path(__file__).with_name("reference_driver.py")

pytestmark = [pytest.mark.slow, pytest.mark.oracle, pytest.mark.xdist_group("litert-families")]


@pytest.mark.parametrize("family", ["gemma3", "granite", "lfm2"])
def test_logits_are_the_sources(
    family: str, litert_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = os.environ.get("BOARDFIT_LLAMA_CPP")
    if not tree:
        skip_or_fail("BOARDFIT_LLAMA_CPP is not set")
    monkeypatch.setenv("BOARDFIT_LITERT_PYTHON", str(litert_python))
    checkpoint = checkpoints.write(family, tmp_path / family, Path(str(tree)))
    model = tmp_path / "model.tflite"
    convert_litert(
        open_directory(checkpoint),
        checkpoint,
        load_recipe("tflite_int8"),
        model,
        prefill_lengths=[16],
        cache_length=64,
        threads=1,
    )
    result = subprocess.run(
        [litert_python, REFERENCE, checkpoint, model],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["finite"]
    # 8 bits err by 1 % on random weights, 4 % with Gemma's post-norms; a misplaced matrix by 100.
    assert found["error"] < 0.15
