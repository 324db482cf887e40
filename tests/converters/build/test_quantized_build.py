"""`edge build` of checkpoints that are not their own floats: manifest and card name from what."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardfit.edge.bundle.bundle import open_bundle
from boardfit.edge.bundle.quality_text import quality_lines
from tests.converters.build.test_build import build
from tests.field.model_folders import make_gptq, write_model

pytestmark = pytest.mark.engine


def test_manifest_and_card_name_what_the_source_was(tmp_path: Path) -> None:
    write_model(tmp_path / "model", add=make_gptq)
    text = tmp_path / "text.txt"
    text.write_text("The lamp in the hall is on. Turn it off at ten, please. " * 60)
    out = tmp_path / "out"
    build(tmp_path / "model", "-d", "raspberry-pi-5-8gb", "-o", out, "--recipe", "q4_0",
          "--quality-text", text, quality=True)  # fmt: skip
    manifest = open_bundle(out).manifest
    stated = "GPTQ, 4 bits, groups of 32 (14 tensors)"
    assert manifest["model"]["source"]["quantized"] == stated
    assert any(stated in note for note in manifest["model"]["notes"])
    assert manifest["quality"]["reference"]["quantized"] == stated
    assert any(stated in line for line in quality_lines(manifest))
